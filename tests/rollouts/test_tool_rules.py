"""Limits of tool calls, what becomes of calls beyond them, and of calls that repeat earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from appo.core.trajectory import BranchPoint, Trajectory
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.tools import ChatTemplateSyntax, TagSyntax, Tool, ToolError, ToolRunner
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.chat import make_chat_tokenizer
from tests.rollouts.conftest import ScriptedEngine
from tests.rollouts.test_chat_calls import END, answered, ask, called

TOTAL = "Error: the limit of {} tool calls is reached."
OF_TOOL = "Error: the limit of {} calls of {} is reached."


class Counter(Tool):
    """Answers with the number of its calls so far; fails where it is told to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.calls: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, argument: str) -> str:
        self.calls.append(argument)
        if argument == "fail":
            raise ToolError("failed")
        return str(len(self.calls))


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    runner = ToolRunner([Counter("a"), Counter("b")])
    runner.start()
    yield runner
    runner.stop()


def converse(
    tokenizer,
    runner: ToolRunner,
    prompt,
    calls: Sequence[tuple[str, str]],
    results: Sequence[str],
    max_tool_calls: int = 10,
    origin: BranchPoint | None = None,
    **rules,
) -> Trajectory:
    """The trajectory of a policy that makes these calls, one a turn, as long as it gets these results."""
    script, text = (
        {},
        "Q?"
        if origin is None
        else "Q?" + _response(tokenizer, origin.trajectory)[: origin.position + 1 - origin.trajectory.prompt_length],
    )
    for number, (tool, argument) in enumerate(calls):
        script[text] = f"<{tool}>{argument}</{tool}>"
        if number < len(results):
            text += script[text] + f" <result>\n{results[number]}\n</result>"
            script[text] = f"ok{EOS}"
    limits = Limits(5000, max_tool_calls, 100, **rules)
    loop = AgentLoop(ScriptedEngine(tokenizer, script), tokenizer, runner, TagSyntax(), limits)
    return loop.run([RolloutRequest(prompt, 0, origin)], None)[0]


def _response(tokenizer, trajectory: Trajectory) -> str:
    return tokenizer.decode(trajectory.token_ids[trajectory.prompt_length :])


def failures(trajectory: Trajectory) -> list[str | None]:
    return [call.failure for call in trajectory.tool_calls]


def test_a_call_beyond_the_limit_of_its_tool_ends_the_trajectory(tokenizer, runner, prompt):
    calls = [("a", "x"), ("b", "x"), ("b", "y"), ("a", "y")]
    trajectory = converse(tokenizer, runner, prompt, calls, ["1", "1", "2"], max_calls_per_tool={"a": 1})
    assert trajectory.finish_reason == "tool_limit"
    assert trajectory.response_mask[-1]
    assert _response(tokenizer, trajectory).endswith("<a>y</a>")
    assert failures(trajectory) == [None] * 3
    assert (runner.tools["a"].calls, runner.tools["b"].calls) == (["x"], ["x", "y"])


def test_refused_calls_are_not_run_and_use_up_no_limit(tokenizer, runner, prompt):
    refusal = OF_TOOL.format(1, "a")
    calls = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2")]
    results = ["1", refusal, refusal, "1", "2"]
    rules = {"max_calls_per_tool": {"a": 1}, "at_tool_limit": "refuse"}
    trajectory = converse(tokenizer, runner, prompt, calls, results, max_tool_calls=3, **rules)
    assert trajectory.finish_reason == "eos"
    assert failures(trajectory) == [None, "refused", "refused", None, None]
    assert (runner.tools["a"].calls, runner.tools["b"].calls) == (["1"], ["1", "2"])


def test_refusals_are_limited_too(tokenizer, runner, prompt):
    refusal = TOTAL.format(1)
    calls = [("a", str(i)) for i in range(4)]
    rules = {"at_tool_limit": "refuse", "max_refusals": 2}
    trajectory = converse(tokenizer, runner, prompt, calls, ["1", refusal, refusal], max_tool_calls=1, **rules)
    assert trajectory.finish_reason == "tool_limit"
    assert failures(trajectory) == [None, "refused", "refused"]
    assert _response(tokenizer, trajectory).endswith("<a>3</a>")


def test_a_tool_may_be_forbidden_altogether(tokenizer, runner, prompt):
    trajectory = converse(tokenizer, runner, prompt, [("a", "x")], [], max_calls_per_tool={"a": 0})
    assert trajectory.finish_reason == "tool_limit"
    assert runner.tools["a"].calls == []


def test_calls_and_refusals_of_a_shared_prefix_count_for_a_branch(tokenizer, runner, prompt):
    rules = {"at_tool_limit": "refuse", "max_refusals": 1}
    refusal = TOTAL.format(1)
    calls, results = [("a", "1"), ("a", "2")], ["1", refusal]
    parent = converse(tokenizer, runner, prompt, calls, results, max_tool_calls=1, **rules)
    assert parent.finish_reason == "eos"
    point = BranchPoint(parent, len(parent) - 3, score=1.0)  # the "o" of "ok", which the end follows
    branch = converse(tokenizer, runner, prompt, [("a", "3")], [], max_tool_calls=1, origin=point, **rules)
    assert branch.finish_reason == "tool_limit"
    assert failures(branch) == [None, "refused"]


def test_of_the_calls_of_one_turn_those_beyond_the_limit_are_refused(runner):
    chat = make_chat_tokenizer()
    prompt = ask(chat, runner)
    start = chat.decode(prompt.token_ids)
    turn = "".join(called("a", input=str(i)) for i in range(4)) + END
    refusal = OF_TOOL.format(2, "a")
    script = {start + turn[:0]: turn, start + turn + answered("1", "2", refusal, refusal): "ok" + END}
    for max_refusals, finish_reason, num_calls in ((2, "eos", 4), (1, "tool_limit", 0)):
        runner.tools["a"].calls.clear()
        limits = Limits(2000, 10, 100, {"a": 2}, at_tool_limit="refuse", max_refusals=max_refusals)
        engine = ScriptedEngine(chat, script)
        (trajectory,) = AgentLoop(engine, chat, runner, ChatTemplateSyntax(), limits).run(
            [RolloutRequest(prompt, 0)], None
        )
        assert (trajectory.finish_reason, len(trajectory.tool_calls)) == (finish_reason, num_calls)
        # A turn that ends its trajectory runs none of its calls: nobody would read the results.
        assert len(runner.tools["a"].calls) == num_calls // 2


def test_malformed_calls_use_up_the_limit(runner):
    chat = make_chat_tokenizer()
    prompt = ask(chat, runner)
    reason = "Error: the tool call is no valid JSON: Expecting value: line 1 column 1 (char 0)"
    script, text = {}, chat.decode(prompt.token_ids)
    for _ in range(3):
        script[text] = "<tool_call></tool_call>" + END
        text += script[text] + answered(reason)
    loop = AgentLoop(ScriptedEngine(chat, script), chat, runner, ChatTemplateSyntax(), Limits(2000, 2, 200))
    (trajectory,) = loop.run([RolloutRequest(prompt, 0)], None)
    assert trajectory.finish_reason == "tool_limit"
    assert failures(trajectory) == ["malformed", "malformed"]


def test_a_repeated_call_is_run_again_by_default(tokenizer, runner, prompt):
    converse(tokenizer, runner, prompt, [("a", "x"), ("a", "x")], ["1", "2"])
    assert runner.tools["a"].calls == ["x", "x"]


def test_a_repeated_call_may_be_answered_from_its_own_trajectory_unless_it_failed(tokenizer, runner, prompt):
    calls = [("a", "x"), ("b", "x"), ("a", "fail"), ("a", "x"), ("a", "fail")]
    trajectory = converse(tokenizer, runner, prompt, calls, ["1", "1", "failed", "1", "failed"], repeated_calls="reuse")
    assert runner.tools["a"].calls == ["x", "fail", "fail"]
    assert runner.tools["b"].calls == ["x"]
    assert failures(trajectory) == [None, None, "error", None, "error"]
    assert trajectory.tool_calls[3].duration_s == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_calls_per_tool": {"a": -1}}, "max_calls_per_tool must not be negative, got -1 for 'a'"),
        ({"max_refusals": -1}, "rollout.limits.max_refusals must not be negative, got -1"),
        ({"max_response_tokens": 0}, "rollout.limits.max_response_tokens must be positive, got 0"),
    ],
)
def test_rules_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Limits(**options)


UNKNOWN = "Error: no tool is named 'wiki'; there are: a, b"


@pytest.mark.parametrize("behind", ["", EOS, f" ok{EOS}", f" <result>\nRome\n</result> ok{EOS}", " <a>x</a>"])
def test_a_call_of_a_tool_that_there_is_not_is_answered_so(tokenizer, runner, prompt, behind):
    written = "<wiki>Italy</wiki>"
    answered_so = f"{written} <result>\n{UNKNOWN}\n</result>"
    script = {"Q?": written + behind, f"Q?{answered_so}": f"ok{EOS}"}
    loop = AgentLoop(ScriptedEngine(tokenizer, script), tokenizer, runner, TagSyntax(), Limits(5000, 10, 100))
    (trajectory,) = loop.run([RolloutRequest(prompt, 0)], None)
    # What was sampled behind the call is dropped: the policy wrote it without the answer.
    assert _response(tokenizer, trajectory) == f"{answered_so}ok{EOS}"
    (call,) = trajectory.tool_calls
    assert (call.tool, call.argument, call.failure) == ("wiki", "Italy", "unknown")
    assert trajectory.invented_results == behind.count("<result>")
    assert runner.tools["a"].calls == []


def test_results_that_the_policy_makes_up_are_counted(tokenizer, runner, prompt):
    results = " <result>\n1\n</result>"
    script = {"Q?": f"{results * 2}<a>x</a>", f"Q?{results * 2}<a>x</a>{results}": f"ok{results}{EOS}"}
    loop = AgentLoop(ScriptedEngine(tokenizer, script), tokenizer, runner, TagSyntax(), Limits(5000, 10, 100))
    (trajectory,) = loop.run([RolloutRequest(prompt, 0)], None)
    assert (trajectory.invented_results, len(trajectory.tool_calls)) == (3, 1)


def test_so_they_are_in_the_syntax_of_a_chat_template(runner):
    chat = make_chat_tokenizer()
    prompt = ask(chat, runner)
    script = {chat.decode(prompt.token_ids): f"<tool_response>\n1\n</tool_response>ok{END}"}
    loop = AgentLoop(ScriptedEngine(chat, script), chat, runner, ChatTemplateSyntax(), Limits(2000, 10, 100))
    (trajectory,) = loop.run([RolloutRequest(prompt, 0)], None)
    assert (trajectory.invented_results, trajectory.tool_calls) == (1, ())
