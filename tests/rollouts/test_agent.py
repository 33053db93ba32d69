"""Alignment across tool results: every value stands at the position of the token it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from appo.core.collate import collate
from appo.core.trajectory import NOT_SAMPLED, BranchPoint, Prompt, Segment, Trajectory
from appo.engines import SamplingParams
from appo.policy.log_probs import PolicyLogProbs
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.scorers import BatchContext, BranchingScore
from appo.tools import PythonTool, SearchBackend, SearchTool, TagSyntax, Tool, ToolError, ToolRunner
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.conftest import ScriptedEngine

LIMITS = Limits(max_response_tokens=500, max_tool_calls=4, max_result_tokens=50)

# Q? | 2 + 18 | 20 + 21 | 41 + 18 | 59 + 21 | 80 + 18 | 98 + 21 | 119 + 3: prompt, turn, result, turn, result, ...
TURNS = ["<python>1</python>", "<python>2</python>", "<python>3</python>", f"ok{EOS}"]
RESULTS = [" <result>\n2\n</result>", " <result>\n4\n</result>", " <result>\n6\n</result>"]
SAMPLED = [*range(2, 20), *range(41, 59), *range(80, 98), *range(119, 122)]


class Doubler(Tool):
    """Doubles a number."""

    @property
    def name(self) -> str:
        return "python"

    def __call__(self, argument: str) -> str:
        if not argument.isdigit():
            raise ToolError(f"{argument!r} is no number")
        return str(2 * int(argument))


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    runner = ToolRunner([Doubler()])
    runner.start()
    yield runner
    runner.stop()


def _script(turns: Sequence[str], results: Sequence[str], start: str = "Q?") -> dict[str, str]:
    """What the engine answers to every prefix of a conversation."""
    script, text = {}, start
    for number, turn in enumerate(turns):
        script[text] = turn
        text += turn + (results[number] if number < len(results) else "")
    return script


def _run(
    tokenizer, runner: ToolRunner, script: dict[str, str], starts: Sequence[RolloutRequest], limits: Limits = LIMITS
) -> tuple[list[Trajectory], ScriptedEngine]:
    engine = ScriptedEngine(tokenizer, script)
    loop = AgentLoop(engine, tokenizer, runner, TagSyntax(), limits)
    return loop.run(starts, SamplingParams()), engine


@pytest.fixture
def three_calls(tokenizer, runner: ToolRunner, prompt: Prompt) -> Trajectory:
    """The conversation of `TURNS` and `RESULTS`."""
    return _run(tokenizer, runner, _script(TURNS, RESULTS), [RolloutRequest(prompt, seed=0)])[0][0]


def test_three_tool_results_leave_every_value_at_its_token(tokenizer, three_calls):
    trajectory = three_calls
    assert tokenizer.decode(trajectory.token_ids) == "Q?" + "".join(
        part for pair in zip(TURNS, [*RESULTS, ""], strict=True) for part in pair
    )
    assert trajectory.response_mask.nonzero()[:, 0].tolist() == SAMPLED
    expected = torch.zeros(122)
    expected[SAMPLED] = -0.125 * torch.arange(1.0, 58.0)  # the engine's n-th sampled token has log-prob -n / 8
    assert trajectory.behavior_log_probs.tolist() == expected.tolist()
    versions = torch.full((122,), NOT_SAMPLED)
    versions[SAMPLED] = 0
    assert trajectory.policy_versions.tolist() == versions.tolist()
    assert [(call.argument, call.result, call.position) for call in trajectory.tool_calls] == [
        ("1", "2", 20),
        ("2", "4", 59),
        ("3", "6", 98),
    ]
    assert trajectory.finish_reason == "eos"
    assert trajectory.segments[1:3] == (Segment(RESULTS[0], False), Segment(TURNS[1], True))
    assert trajectory.segments[-1] == Segment("ok", True)


def test_a_branch_off_the_second_turn_calls_a_tool_again(tokenizer, runner, prompt, three_calls):
    point = BranchPoint(three_calls, position=49, score=1.0)  # the "2" of the second call
    shared = tokenizer.decode(three_calls.token_ids[:50])
    result = " <result>\n54\n</result>"
    script = _script(["7</python>", f"hi{EOS}"], [result], start=shared)
    (branch,), engine = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0, point)])
    assert tokenizer.decode(branch.token_ids) == shared + "7</python>" + result + f"hi{EOS}"
    assert branch.token_ids[:50].tolist() == three_calls.token_ids[:50].tolist()
    # own tokens: 50 + 10 to the end of the call, 60 + 22 the result, 82 + 3 the last turn
    assert branch.response_mask.nonzero()[:, 0].tolist() == [*range(2, 20), *range(41, 60), *range(82, 85)]
    assert branch.behavior_log_probs[:50].tolist() == three_calls.behavior_log_probs[:50].tolist()
    assert branch.behavior_log_probs[50:].tolist() == [-i / 8 for i in range(1, 11)] + [0.0] * 22 + [
        -i / 8 for i in range(11, 14)
    ]
    assert [(call.argument, call.result, call.position) for call in branch.tool_calls] == [
        ("1", "2", 20),
        ("27", "54", 60),
    ]
    assert branch.num_own_tokens == 13
    assert [len(request.token_ids) for request in engine.requests] == [50, 82]
    assert [request.max_tokens for request in engine.requests] == [500 - 48, 500 - 80]


def test_a_branch_that_may_not_call_tools_ends_at_its_first_call(tokenizer, runner, prompt, three_calls):
    point = BranchPoint(three_calls, position=49, score=0.0)
    shared = tokenizer.decode(three_calls.token_ids[:50])
    (branch,), engine = _run(
        tokenizer, runner, {shared: "7</python>"}, [RolloutRequest(prompt, 0, point, may_call_tools=False)]
    )
    assert tokenizer.decode(branch.token_ids) == shared + "7</python>"
    assert branch.finish_reason == "tool_limit"
    # The call of the shared prefix stays.
    assert [call.argument for call in branch.tool_calls] == ["1"]
    assert len(engine.requests) == 1


def test_what_the_policy_says_and_the_scores_stand_at_the_sampled_tokens(tokenizer, runner, prompt, three_calls):
    point = BranchPoint(three_calls, position=49, score=1.0)
    shared = tokenizer.decode(three_calls.token_ids[:50])
    script = _script(["7</python>", f"hi{EOS}"], [" <result>\n54\n</result>"], start=shared)
    (branch,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0, point)])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    plain = collate([three_calls, branch])
    log_probs, entropies = PolicyLogProbs(model)(plain.token_ids, plain.response_mask)
    batch = plain.evaluated(torch.arange(2), log_probs.detach(), entropies.detach(), policy_version=0)
    scores = BranchingScore()(batch, BatchContext(torch.Generator())).values
    for row, sampled in enumerate([SAMPLED, [*range(2, 20), *range(41, 60), *range(82, 85)]]):
        token_ids = batch.token_ids[row, : batch.lengths[row]]
        log_softmax = model(token_ids[None]).logits[0].log_softmax(-1)
        for position in range(batch.token_ids.shape[1]):
            if position not in sampled:
                assert batch.old_log_probs[row, position] == batch.entropies[row, position] == 0
                assert scores[row, position] == float("-inf")
                continue
            # Position t is predicted by what the model says at t - 1, across every tool result.
            predicted = log_softmax[position - 1]
            assert batch.old_log_probs[row, position].item() == pytest.approx(
                predicted[token_ids[position]].item(), abs=1e-5
            )
            entropy = -(predicted.exp() * predicted).sum().item()
            assert batch.entropies[row, position].item() == pytest.approx(entropy, abs=1e-5)
            assert scores[row, position].isfinite()


def test_a_prefix_that_ends_with_a_call_gets_its_result_first(tokenizer, runner, prompt, three_calls):
    point = BranchPoint(three_calls, position=58, score=1.0)  # the last token of the second call
    shared = tokenizer.decode(three_calls.token_ids[:59]) + RESULTS[1]
    (branch,), engine = _run(tokenizer, runner, {shared: f"hi{EOS}"}, [RolloutRequest(prompt, 0, point)])
    assert [len(request.token_ids) for request in engine.requests] == [80]
    assert [call.argument for call in branch.tool_calls] == ["1", "2"]


def test_a_closing_tag_that_begins_in_the_shared_prefix_ends_the_call(tokenizer, runner, prompt, three_calls):
    point = BranchPoint(three_calls, position=52, score=1.0)  # inside the second closing tag: 50 is "<", 52 is "p"
    shared = tokenizer.decode(three_calls.token_ids[:53])
    # The engine sees no whole stop string and runs on; what it wrote behind the tag is dropped.
    script = {shared: f"ython> and on{EOS}", shared + "ython>" + RESULTS[1]: f"hi{EOS}"}
    (branch,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0, point)])
    assert tokenizer.decode(branch.token_ids) == shared + "ython>" + RESULTS[1] + f"hi{EOS}"
    assert branch.behavior_log_probs[53:59].tolist() == [-i / 8 for i in range(1, 7)]
    assert branch.finish_reason == "eos"


def test_a_closing_tag_without_an_opening_one_calls_nothing(tokenizer, runner, prompt):
    script = {
        "Q?": "no</python>",
        "Q?no</python>": " <python>5</python>",
        "Q?no</python> <python>5</python> <result>\n10\n</result>": EOS,
    }
    (trajectory,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0)])
    assert [(call.argument, call.result) for call in trajectory.tool_calls] == [("5", "10")]


def test_tags_in_the_prompt_and_in_results_are_no_calls(tokenizer, runner):
    text = "Use <python>1</python>!"
    prompt = Prompt("q1", text, tuple(tokenizer.encode(text, add_special_tokens=False)), ("4",))
    (trajectory,), _ = _run(tokenizer, runner, {text: f"ok{EOS}"}, [RolloutRequest(prompt, 0)])
    assert trajectory.tool_calls == ()


def test_a_failing_call_becomes_the_result_and_is_counted(tokenizer, runner, prompt):
    result = " <result>\n'x' is no number\n</result>"
    script = _script(["<python>x</python>", f"ok{EOS}"], [result])
    (trajectory,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0)])
    assert trajectory.tool_calls[0].failure == "error"
    assert trajectory.finish_reason == "eos"


def test_variables_last_for_a_trajectory_and_a_branch_finds_those_of_its_prefix_alone(tokenizer, prompt):
    runner = ToolRunner([PythonTool(keep_variables=True, timeout_s=30.0)])
    runner.start()
    turns = ["<python>x = 4</python>", "<python>x += 1; x</python>", "<python>x</python>", EOS]
    results = [f" <result>\n{result}\n</result>" for result in ("(no output)", "5", "5")]
    (parent,), _ = _run(tokenizer, runner, _script(turns, results), [RolloutRequest(prompt, 0)])
    assert [call.result for call in parent.tool_calls] == ["(no output)", "5", "5"]
    shared = "Q?" + turns[0] + results[0]
    point = BranchPoint(parent, position=len(shared) - 1, score=1.0)
    script = {shared: "<python>x</python>", f"{shared}<python>x</python> <result>\n4\n</result>": EOS}
    (branch,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0, point)])
    assert [call.result for call in branch.tool_calls] == ["(no output)", "4"]
    runner.stop()


def test_a_call_beyond_the_limit_ends_the_trajectory_on_its_last_sampled_token(tokenizer, runner, prompt):
    limits = Limits(max_response_tokens=500, max_tool_calls=1, max_result_tokens=50)
    (trajectory,), _ = _run(tokenizer, runner, _script(TURNS, RESULTS), [RolloutRequest(prompt, 0)], limits)
    assert trajectory.finish_reason == "tool_limit"
    assert len(trajectory) == 59
    assert trajectory.response_mask[-1]


@pytest.mark.parametrize(("limit", "length"), [(10, 12), (25, 27), (38, 40)])
def test_the_response_limit_holds_inside_turns_and_results(tokenizer, runner, prompt, limit, length):
    limits = Limits(max_response_tokens=limit, max_tool_calls=4, max_result_tokens=50)
    script = _script(TURNS, RESULTS)
    (trajectory,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0)], limits)
    assert len(trajectory) == length
    assert trajectory.finish_reason == "length"


def test_a_long_result_is_cut_to_its_token_limit(tokenizer, runner, prompt):
    limits = Limits(max_response_tokens=500, max_tool_calls=4, max_result_tokens=3)
    script = _script(["<python>99999</python>", f"ok{EOS}"], [" <result>\n199\n</result>"])
    (trajectory,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0)], limits)
    assert trajectory.tool_calls[0].result == "199"


class Facts(SearchBackend):
    """Finds the same facts for every query."""

    def search(self, query: str, limit: int) -> list[str]:
        return ["0123456789", "abc", "ABCDEFGHIJ"]


def test_a_long_search_result_keeps_the_beginning_of_every_passage(tokenizer, prompt):
    limits = Limits(max_response_tokens=500, max_tool_calls=4, max_result_tokens=20)
    result = "0123456\nabc\nABCDEFGH"
    script = _script(["<search>x</search>", f"ok{EOS}"], [f" <result>\n{result}\n</result>"])
    runner = ToolRunner([SearchTool(Facts())])
    runner.start()
    (trajectory,), _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0)], limits)
    runner.stop()
    assert trajectory.tool_calls[0].result == result


def test_trajectories_come_back_in_the_order_of_their_starts(tokenizer, runner):
    prompts = [
        Prompt(f"q{i}", f"{i}?", tuple(tokenizer.encode(f"{i}?", add_special_tokens=False)), ("",)) for i in range(3)
    ]
    # The first one needs a tool, so it finishes last.
    script = {**_script(TURNS, RESULTS, start="0?"), "1?": f"b{EOS}", "2?": f"c{EOS}"}
    trajectories, _ = _run(tokenizer, runner, script, [RolloutRequest(prompt, 0) for prompt in prompts])
    assert [trajectory.prompt.id for trajectory in trajectories] == ["q0", "q1", "q2"]
    assert [len(trajectory.tool_calls) for trajectory in trajectories] == [3, 0, 0]


def test_requests_of_a_trajectory_have_seeds_of_their_own(tokenizer, runner, prompt):
    _, engine = _run(tokenizer, runner, _script(TURNS, RESULTS), [RolloutRequest(prompt, seed=0)])
    assert len({request.seed for request in engine.requests}) == 4
    _, again = _run(tokenizer, runner, _script(TURNS, RESULTS), [RolloutRequest(prompt, seed=0)])
    assert [request.seed for request in again.requests] == [request.seed for request in engine.requests]
