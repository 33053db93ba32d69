"""Scorers that have the policy evaluate sequences that nobody has sampled."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from appo.core.turn_gains import turn_gains
from appo.scorers import HindsightDivergence, InformationGain
from tests.scorers.contexts import Letters, context_of
from tests.scorers.scored_batches import INF, one_row, two_results


class Recorded:
    """Log-probs of which the first is -1, the second -2, and so on; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[str]]] = []

    def __call__(self, sequences, masks) -> list[Tensor]:
        texts = [Letters().decode(sequence.tolist()) for sequence in sequences]
        asked = [Letters().decode(s[mask].tolist()) for s, mask in zip(sequences, masks, strict=True)]
        self.calls.append((texts, asked))
        return [-torch.arange(1.0, 1 + int(mask.sum())) for mask in masks]


def lettered(batch, text: str):
    """The batch with a text as its tokens."""
    return replace(batch, token_ids=torch.tensor([[ord(letter) for letter in text]] * len(batch)))


def with_prompts(context, **changes):
    prompts = [replace(trajectory.prompt, **changes) for trajectory in context.trajectories]
    records = [replace(t, prompt=p) for t, p in zip(context.trajectories, prompts, strict=True)]
    return replace(context, trajectories=records)


def test_hindsight_stands_between_prompt_and_response_and_the_response_is_asked_for():
    batch = lettered(replace(one_row([0.5, 0.0], [1.0, 1.0]), rewards=torch.tensor([0.25])), "?ab")
    policy = Recorded()
    context = replace(context_of(batch), log_probs=policy)
    scores = HindsightDivergence(answer="[{answer}]", verdict="({reward})")(batch, context)
    assert policy.calls == [(["?[7 or seven](0.25)ab"], ["ab"])]
    # |-1 - -0.5| and |-2 - -1|
    assert scores.values.tolist() == [[-INF, 0.5, 1.0]]
    torch.testing.assert_close(scores.factors["hindsight_divergence"], torch.tensor([[0.0, 0.5, 1.0]]))


def test_tool_output_is_passed_on_and_not_asked_for():
    batch = lettered(replace(two_results([1.0] * 6, rows=2), rewards=torch.tensor([1.0, float("nan")])), "?ab_cd_ef")
    policy = Recorded()
    scores = HindsightDivergence(answer="{answer}")(batch, replace(context_of(batch), log_probs=policy))
    told = "7 or seven"
    rewarded = "\nThe following response has the reward 1.\n"
    assert policy.calls == [([f"?{told}{rewarded}ab_cd_ef", f"?{told}ab_cd_ef"], ["abcdef"] * 2)]
    # Old log-probs are -1: |-k + 1| for the k-th sampled token.
    assert scores.values[0].tolist() == [-INF, 0, 1, -INF, 2, 3, -INF, 4, 5]


def test_without_answer_and_reward_there_is_no_hindsight():
    batch = one_row([0.5, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="hindsight must tell an answer or a reward, got neither for prompt 0"):
        HindsightDivergence()(batch, with_prompts(context_of(batch), answers=()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "It is known."}, "answer must be empty or hold {answer}, got 'It is known.'"),
        ({"verdict": "Right."}, "verdict must be empty or hold {reward}, got 'Right.'"),
        ({"answer": "", "verdict": ""}, "answer and verdict must not both be empty"),
    ],
)
def test_bad_texts_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        HindsightDivergence(**options)


def test_a_hindsight_that_the_policy_does_not_heed_scores_0():
    batch = one_row([0.0, 0.0], [1.0, 1.0])
    context = replace(context_of(batch), log_probs=lambda sequences, masks: [torch.full((2,), -1.0)])
    assert HindsightDivergence()(batch, context).values[0, 1:].tolist() == [0.0, 0.0]


def test_information_gain_by_hand():
    batch = lettered(two_results([1.0] * 6), "?ab_cd_ef")
    asked: list[str] = []

    def log_probs(sequences, masks) -> list[Tensor]:
        asked.extend(Letters().decode(sequence.tolist()) for sequence in sequences)
        assert [int(mask.sum()) for mask in masks] == [2, 2, 2]
        # mean log-probs of the answer: log 0.1, log 0.5, log 0.2
        return [torch.tensor([math.log(p) - 1.0, math.log(p) + 1.0]) for p in (0.1, 0.5, 0.2)]

    context = replace(with_prompts(context_of(batch), answers=("42", "43")), log_probs=log_probs)
    scorer = InformationGain(opening=">")
    scores = scorer(batch, context)
    assert asked == ["?>42", "?ab_>42", "?ab_cd_>42"]
    torch.testing.assert_close(scores.values, torch.tensor([[-INF, 0.4, -INF, -INF, 0.3, -INF, -INF, 0.0, -INF]]))
    assert scores.at_turns
    gains = turn_gains(batch, context, ">")
    torch.testing.assert_close(gains, torch.tensor([[0.0, 0.4, 0.4, 0.0, -0.3, -0.3, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(scores.factors["information_gain"], gains)


def test_a_single_turn_gains_nothing_and_asks_the_policy_nothing_though_it_is_called():
    batch = one_row([0.0, 0.0], [1.0, 1.0])
    policy = Recorded()
    scores = InformationGain()(batch, replace(context_of(batch), log_probs=policy))
    assert policy.calls == [([], [])]
    assert scores.values.tolist() == [[-INF, 0.0, -INF]]


@pytest.mark.parametrize("answers", [(), ("",)])
def test_a_prompt_without_an_answer_is_refused(answers):
    batch = two_results([1.0] * 6)
    with pytest.raises(ValueError, match=r"prompts with answers that are not empty, got \[.*\] for prompt 0"):
        InformationGain()(batch, with_prompts(context_of(batch), answers=answers))


def test_both_are_compared_within_the_current_policy():
    # The log-probs without hindsight are old ones; those of the answer are asked for.
    assert HindsightDivergence.reads_log_probs
    assert not InformationGain.reads_log_probs
    assert not HindsightDivergence.compares_policies
