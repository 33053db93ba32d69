"""Conversations in tokenizers with the habits of real ones: tokens as they were sampled, texts as they were meant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from appo.core.trajectory import Prompt
from appo.engines import SamplingParams
from appo.engines.hf.stopping import StopRules, end_token_ids
from appo.policy.text import decode, encode, end_ids, turn_end_id
from appo.prompts import ChatEncoder, Question
from appo.rewards import AnswerReward
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.sft import Conversation
from appo.sft.encoding import ConversationEncoder
from appo.tools import TagSyntax, Tool, ToolRunner
from tests.policy.tokenizers import NAMES, load
from tests.rollouts.conftest import ScriptedEngine
from tests.sft.small_source import said

QUESTION = Question("q", ({"role": "user", "content": "What is 3 + 4? 🎉"},), ("7",))
EMOJI = "👩🏽\N{ZERO WIDTH JOINER}🚀🎉"


class Echo(Tool):
    """Says what it was asked."""

    @property
    def name(self) -> str:
        return "python"

    def __call__(self, argument: str) -> str:
        return argument


@pytest.fixture(params=NAMES)
def tokenizer(request) -> PreTrainedTokenizerBase:
    return load(request.param)


@pytest.fixture
def echo() -> Iterator[ToolRunner]:
    runner = ToolRunner([Echo()])
    runner.start()
    yield runner
    runner.stop()


def converse(tokenizer, runner, prompt, *turns):
    """A conversation of turns of the policy, with the result of the call that ends each but the last."""
    syntax = TagSyntax()
    script, text = {}, tokenizer.decode(prompt)
    for turn in turns:
        script[text] = turn
        argument = turn.partition("<python>")[2].partition("</python>")[0]
        text += turn + syntax.format_results([argument], "", None)
    engine = ScriptedEngine(tokenizer, script)
    engine.end_ids = tuple(end_ids(tokenizer))
    loop = AgentLoop(engine, tokenizer, runner, syntax, Limits(max_response_tokens=400, max_result_tokens=60))
    request = RolloutRequest(Prompt("q", "?", tuple(prompt), ("7",)), 0)
    return loop.run([request], SamplingParams())[0], engine


def test_a_prompt_begins_once(tokenizer):
    (token_ids,) = ChatEncoder(tokenizer)([QUESTION])
    bos = tokenizer.bos_token_id
    if bos is None:
        assert token_ids[0] == encode(tokenizer, "<|im_start|>")[0]
    else:
        # The template writes it, and most tokenizers would put it before every text besides.
        assert [position for position, token in enumerate(token_ids) if token == bos] == [0]
    assert "🎉" in decode(tokenizer, token_ids)


def test_a_demonstration_begins_once_and_ends_with_the_end_of_its_turn(tokenizer):
    conversation = Conversation(
        (said("user", "What is 3 + 4?"), said("assistant", "It is 7.", " <result>\n7\n</result>", "So."))
    )
    (row,) = ConversationEncoder(tokenizer)([conversation])
    bos, end = tokenizer.bos_token_id, turn_end_id(tokenizer)
    assert list(row.token_ids).count(bos) == (0 if bos is None else 1)
    learned = [token for token, is_learned in zip(row.token_ids, row.is_written, strict=True) if is_learned]
    assert learned[-1] == end


def test_each_of_several_end_tokens_ends_a_response(tokenizer):
    others = {3, 4}
    known = end_token_ids(GenerationConfig(eos_token_id=sorted(others)), tokenizer)
    assert known == others | {tokenizer.eos_token_id, turn_end_id(tokenizer)}
    assert end_ids(tokenizer) == {tokenizer.eos_token_id, turn_end_id(tokenizer)}


def test_tokens_of_a_conversation_stay_as_they_were_sampled(tokenizer, echo):
    (prompt,) = ChatEncoder(tokenizer)([QUESTION])
    end = tokenizer.decode([turn_end_id(tokenizer)])
    # `)</`, `>` with white space and a tag behind it fuse in many vocabularies.
    first, last = "<think>So.</think>\n\n<python>print((1))</python>", f"<answer>\\boxed{{7}}</answer>{end}"
    trajectory, engine = converse(tokenizer, echo, prompt, first, last)
    assert [(call.tool, call.argument, call.result) for call in trajectory.tool_calls] == [
        ("python", "print((1))", "print((1))")
    ]
    sampled = [token for turn in (first, last) for token in engine.encode(turn)]
    mask = trajectory.response_mask
    assert trajectory.token_ids[mask].tolist() == sampled
    assert trajectory.token_ids[: len(prompt)].tolist() == prompt
    assert (
        decode(tokenizer, trajectory.token_ids.tolist())
        == decode(tokenizer, prompt) + first + trajectory.segments[1].text + last
    )
    assert AnswerReward()(trajectory).reward == 1.0
    assert tokenizer.bos_token_id not in trajectory.token_ids[len(prompt) :].tolist()


def test_a_demonstration_is_learned_as_it_would_have_been_sampled(tokenizer, echo):
    (prompt,) = ChatEncoder(tokenizer)([QUESTION])
    end = tokenizer.decode([turn_end_id(tokenizer)])
    turns = "<think>So.</think>\n\n<python>print((1))</python>", f"<think>7.</think><answer>\\boxed{{7}}</answer>{end}"
    trajectory, _ = converse(tokenizer, echo, prompt, *turns)
    texts = [segment.text for segment in trajectory.segments]
    shown = said("assistant", *texts[:-1], texts[-1].removesuffix(end))
    (row,) = ConversationEncoder(tokenizer)([Conversation((said("user", QUESTION.text), shown))])
    num_tokens = len(trajectory)
    assert list(row.token_ids[:num_tokens]) == trajectory.token_ids.tolist()
    assert list(row.is_written[:num_tokens]) == trajectory.response_mask.tolist()
    # A template may go on behind the end of the turn.
    assert not any(row.is_written[num_tokens:])


def test_an_emoji_of_several_tokens_is_whole_in_calls_results_and_text(tokenizer, echo):
    assert len(encode(tokenizer, EMOJI)) > 3
    (prompt,) = ChatEncoder(tokenizer)([QUESTION])
    call, end = f"<python>{EMOJI}</python>", tokenizer.decode([turn_end_id(tokenizer)])
    trajectory, _ = converse(tokenizer, echo, prompt, call, f"{EMOJI}{end}")
    assert [(made.argument, made.result) for made in trajectory.tool_calls] == [(EMOJI, EMOJI)]
    assert [segment.text for segment in trajectory.segments] == [
        call,
        TagSyntax().format_results([EMOJI], "", None),
        EMOJI,
    ]


def test_a_stop_string_is_found_at_the_token_that_brings_its_last_character(tokenizer):
    rules = StopRules(tokenizer, len(tokenizer), end_ids(tokenizer))
    stops = ("</python>", "🎉")
    number = rules.number_of(stops)
    for text in ("print((1))</python>\n\n<", f"{EMOJI}.", "<think>a</think></python><answer>"):
        token_ids = encode(tokenizer, text)
        found = next(
            (end for end in range(1, len(token_ids) + 1) if rules.find_stop(token_ids[:end], stops) is not None), None
        )
        assert found is not None, text
        whole = [decode(tokenizer, token_ids[:end]) for end in (found - 1, found)]
        assert any(stop in whole[1] for stop in stops)
        assert not any(stop in whole[0] for stop in stops)
        assert rules.may_end(torch.tensor([number]), torch.tensor([token_ids[found - 1]])).all()


@pytest.mark.parametrize("name", ["fusing", "real qwen3"])
def test_a_template_that_drops_thoughts_is_learned_in_each_form_that_a_conversation_takes(name):
    tokenizer = load(name)
    thought = "<think>\nHm.\n</think>\n\n"
    turns = (
        said("user", "1?"),
        said("assistant", f"{thought}one"),
        said("user", "2?"),
        said("assistant", f"{thought}two"),
    )
    rows = ConversationEncoder(tokenizer)([Conversation(turns)])
    texts = [decode(tokenizer, row.token_ids) for row in rows]
    assert [text.count("Hm.") for text in texts] == [1, 1]
    assert texts[0].count("two") == 0
    assert texts[1].count("one") == 1
