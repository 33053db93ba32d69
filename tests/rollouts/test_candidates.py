"""Which tokens of a conversation may be branch points, read off the text that they spell."""

from __future__ import annotations

import pytest
import torch

from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate
from appo.core.trajectory import NOT_SAMPLED, Prompt, Trajectory
from appo.rollouts import Branching, CandidateFilter
from tests.rollouts.byte_tokenizer import EOS

CALL = "so <python>a+b</python>"
RESULT = " <result> <b>x</b> </result>"
ANSWER = f"<think>5 - 2</think>!{EOS}"


@pytest.fixture
def batch(tokenizer):
    """A call, its result, and a second turn."""
    return conversation(tokenizer, ["Q", CALL, RESULT, ANSWER])


def conversation(tokenizer, texts) -> TrajectoryBatch:
    """What is given and what is sampled, in turns; one token a letter."""
    encoded = [(tokenizer.encode(text, add_special_tokens=False), i % 2 == 1) for i, text in enumerate(texts)]
    ids = torch.tensor([token_id for token_ids, _ in encoded for token_id in token_ids])
    mask = torch.tensor([sampled for token_ids, sampled in encoded for _ in token_ids])
    versions = torch.where(mask, 0, NOT_SAMPLED)
    trajectory = Trajectory(Prompt("q", "Q", tuple(encoded[0][0]), ()), ids, mask, -1.0 * mask, versions, (), (), "eos")
    return collate([trajectory])


def spelled(tokenizer, batch, exclude) -> str:
    """The letters that may be branch points."""
    candidates = CandidateFilter(tokenizer, exclude)(batch)
    return tokenizer.decode(batch.token_ids[candidates])


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        # The end token is the last one, which never is a branch point.
        ((), "so <python>a+b</python><think>5 - 2</think>!"),
        (("whitespace",), "so<python>a+b</python><think>5-2</think>!"),
        (("punctuation",), "so pythonabpythonthink5  2think"),
        (("tags",), "so a+b5 - 2!"),
        (("calls",), "so <python></python><think>5 - 2</think>!"),
        (("whitespace", "punctuation", "special", "tags", "calls"), "so52"),
    ],
)
def test_each_kind_of_token_can_be_left_out(tokenizer, batch, exclude, expected):
    assert spelled(tokenizer, batch, exclude) == expected


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        # The full stop is the last token, which never is a branch point.
        # Whatever place a reward reads: the last answer, a box in it, the last box.
        ([r"<think>7</think><answer>it is \boxed{7}!</answer>."], "<think>7</think><answer></answer>"),
        ([r"so \boxed{1}, \boxed{a\frac{1}{2}}."], r"so \boxed{1}, \boxed{}"),
        # Neither a mention of the tag nor an answer that is not the last one is what a reward reads.
        (["an <answer> is due<answer>7</answer>."], "an <answer> is due<answer></answer>"),
        (["<answer>7</answer> or <answer>8</answer>."], "<answer>7</answer> or <answer></answer>"),
        # Nor is what is not closed, or empty, or holds what a tool wrote.
        (["<answer>7."], "<answer>7"),
        ([r"\boxed{}<answer></answer>."], r"\boxed{}<answer></answer>"),
        (["<answer>7", r"\boxed{1", "}</answer>."], "<answer>7}</answer>"),
    ],
)
def test_the_answer_that_rewards_read_can_be_left_out(tokenizer, texts, left):
    assert spelled(tokenizer, conversation(tokenizer, ["Q", *texts]), ("answer",)) == left


def test_special_tokens_in_the_middle_can_be_left_out(tokenizer, batch):
    end = batch.token_ids[0, -1]
    batch.token_ids[0, 2] = end
    assert spelled(tokenizer, batch, ("special",)).startswith("s <python>")
    assert spelled(tokenizer, batch, ()).startswith(f"s{EOS} <python>")


def test_a_tag_does_not_reach_over_tool_output(tokenizer, batch):
    # A "<" that was sampled, tool output, then "b>": no tag, whatever the result says.
    text = tokenizer.encode("Qa<rb>c", add_special_tokens=False)
    mask = torch.tensor([False, True, True, False, True, True, True])
    trajectory = Trajectory(
        Prompt("q", "Q", (text[0],), ()), torch.tensor(text), mask, -1.0 * mask, torch.where(mask, 0, -1), (), (), "eos"
    )
    assert spelled(tokenizer, collate([trajectory]), ("tags",)) == "a<b>"


def test_ids_that_the_tokenizer_does_not_know_are_no_branch_points(tokenizer, batch):
    batch.token_ids[0, 1] = len(tokenizer)
    assert spelled(tokenizer, batch, ("tags",)).startswith("o a+b")


def test_an_unknown_kind_is_refused():
    expected = r"rollout.branching.exclude must name kinds among whitespace, .*, got 'vowels'"
    with pytest.raises(ValueError, match=expected):
        Branching(exclude=("vowels",))
