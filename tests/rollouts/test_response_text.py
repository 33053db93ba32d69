"""The text of a response: what rewards, calls and people read of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from appo.core.trajectory import Prompt, Trajectory
from appo.engines import SamplingParams
from appo.rewards import AnswerReward, ExactMatchReward, Grading
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.tools import CallSyntax, ChatTemplateSyntax, TagSyntax, Tool, ToolRunner
from tests.rollouts.conftest import ScriptedEngine

PAD, EOS, START = "<|pad|>", "<|end|>", "<|start|>"
TAGS = [f"{slash}{tag}>" for tag in ("think", "answer", "python", "tool_call") for slash in ("<", "</")]
TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}OPENING{% endif %}"
)
TAG_SYNTAX = TagSyntax()
CALL = '<tool_call>{"name": "python", "arguments": {"input": "3+4"}}</tool_call>'


class Seven(Tool):
    """Always answers 7."""

    name = "python"

    def __call__(self, argument: str) -> str:
        return "7"


def make_tokenizer(special: Sequence[str], opening: str = "") -> PreTrainedTokenizerFast:
    """One token a byte, and one for each special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[AddedToken(token, special=True) for token in (START, *special)],
    )
    wrapped.chat_template = TEMPLATE.replace("OPENING", opening)
    return wrapped


def respond(
    tokenizer: PreTrainedTokenizerFast, turns: Mapping[str, str], syntax: CallSyntax = TAG_SYNTAX, behind: str = ""
) -> Trajectory:
    """One trajectory; `turns` are keyed by what stands behind the prompt, `behind` is written to the prompt's end."""
    messages = [{"role": "user", "content": "Q?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + behind
    prompt = Prompt("q", "Q?", tuple(tokenizer.encode(text, add_special_tokens=False)), ("7",))
    runner = ToolRunner([Seven()])
    runner.start()
    try:
        engine = ScriptedEngine(tokenizer, {text + key: turn for key, turn in turns.items()})
        return AgentLoop(engine, tokenizer, runner, syntax, Limits()).run(
            [RolloutRequest(prompt, 0)], SamplingParams()
        )[0]
    finally:
        runner.stop()


def test_tags_that_are_special_tokens_can_be_read():
    called, result = "<think>3+4 is 7</think><python>3+4</python>", " <result>\n7\n</result>"
    turns = {"": called, called + result: f"<answer>\\boxed{{7}}</answer>{EOS}"}
    trajectory = respond(make_tokenizer(TAGS), turns)
    assert trajectory.text == called + result + "<answer>\\boxed{7}</answer>"
    assert AnswerReward()(trajectory).reward == 1.0
    assert ExactMatchReward(Grading(answer_from="answer"))(trajectory).reward == 1.0


def test_marks_of_messages_are_no_text():
    trajectory = respond(make_tokenizer(TAGS), {"": f"{START}<think>so</think>7{PAD}{EOS}"})
    assert trajectory.text == "<think>so</think>7"


@pytest.mark.parametrize("special", [(), TAGS], ids=["plain", "special"])
@pytest.mark.parametrize("opening", ["<think>", "<think>\n", "<think>\n\n"])
def test_a_thought_that_the_template_opens_is_one(special, opening):
    turn = f"3+4 is 7</think><answer>\\boxed{{7}}</answer>{EOS}"
    trajectory = respond(make_tokenizer(special, opening), {"": turn})
    assert trajectory.text == opening + turn.removesuffix(EOS)
    assert AnswerReward()(trajectory).reward == 1.0
    assert not trajectory.response_mask[: trajectory.prompt_length].any()


def test_a_thought_that_the_template_opens_and_nobody_closes_has_no_answer():
    trajectory = respond(make_tokenizer(TAGS, "<think>\n"), {"": f"<answer>\\boxed{{7}}</answer> 7{EOS}"})
    assert AnswerReward()(trajectory).reason == "bad format: the answer must stand outside of <think>...</think>"
    assert ExactMatchReward(Grading(answer_from="response"))(trajectory).reward == 0.0


def test_a_question_about_tags_opens_nothing():
    tokenizer = make_tokenizer(TAGS)
    trajectory = respond(tokenizer, {"": f"7{EOS}"}, behind="")
    assert trajectory.text == "7"
    closed = respond(tokenizer, {"": f"7{EOS}"}, behind="<think>\n\n</think>\n\n")
    assert closed.text == "7"


def test_what_a_thought_mentions_is_no_call_though_the_template_opened_it():
    tokenizer = make_tokenizer(TAGS, "<think>\n")
    mention = respond(tokenizer, {"": f"I could {CALL}{EOS}"}, ChatTemplateSyntax())
    assert not mention.tool_calls
    behind = f"{START}tool\n7{EOS}{START}assistant\n<think>\n"
    said = f"a</think>{CALL}{EOS}"
    turns = {"": said, said + behind: f"b</think><answer>\\boxed{{7}}</answer>{EOS}"}
    trajectory = respond(tokenizer, turns, ChatTemplateSyntax())
    assert [call.result for call in trajectory.tool_calls] == ["7"]
    # Every turn begins with the thought that the template opened for it.
    assert [s.text for s in trajectory.segments if s.is_generated] == [
        f"<think>\na</think>{CALL}", "<think>\nb</think><answer>\\boxed{7}</answer>",
    ]  # fmt: skip
    assert "<think>" not in "".join(s.text for s in trajectory.segments if not s.is_generated)


def test_a_call_that_the_prompt_begins_is_run():
    turns = {"": "3+4</python>", "3+4</python> <result>\n7\n</result>": f"7{EOS}"}
    trajectory = respond(make_tokenizer(TAGS), turns, behind="<python>")
    assert [(call.argument, call.position - trajectory.prompt_length) for call in trajectory.tool_calls] == [("3+4", 4)]


def test_what_a_tool_answers_opens_no_thought():
    class Opener(Seven):
        def __call__(self, argument: str) -> str:
            return "<think>"

    tokenizer = make_tokenizer(())
    runner = ToolRunner([Opener()])
    runner.start()
    turns = {"Q": "<python>1</python>", "Q<python>1</python>< think>": f"<answer>\\boxed{{7}}</answer>{EOS}"}
    prompt = Prompt("q", "Q", tuple(tokenizer.encode("Q", add_special_tokens=False)), ("7",))
    loop = AgentLoop(ScriptedEngine(tokenizer, turns), tokenizer, runner, TagSyntax("{result}"), Limits())
    trajectory = loop.run([RolloutRequest(prompt, 0)], SamplingParams())[0]
    runner.stop()
    assert trajectory.segments[-1].text == "<answer>\\boxed{7}</answer>"
