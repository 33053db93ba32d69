"""The estimates of a pilot study at every decision, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from appo.commands.pilot.records import Decision, Question, ScoreColumn
from appo.functional import RewardVariance, average_ranks, bootstrap_variance, rank_correlation, reward_variance

LEVEL = 0.95
"""Of all intervals."""

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
"""Halves of the continuations of a decision."""

_SAMPLES = 400
"""Of every bootstrap."""


@dataclass(frozen=True, eq=False)
class Measures:
    """Of the decisions of one question, ``[P]`` each.

    Attributes:
        question: what was measured.
        mean: of the reward.
        total: ``Var R``.
        influence: ``Var_a Q``; NaN where all tokens drawn differ.
        halves: the same by the even and by the odd continuations, which are independent of each other.
    """

    question: Question
    mean: Tensor
    total: Tensor
    influence: Tensor
    halves: tuple[RewardVariance, RewardVariance]

    @staticmethod
    def of(question: Question) -> Measures:
        """Estimates everything."""
        tokens, rewards = _columns(question.decisions)
        whole = reward_variance(rewards, tokens)
        even, odd = (reward_variance(rewards[:, half], tokens[:, half]) for half in (EVEN, ODD))
        return Measures(question, whole.mean, whole.total, whole.influence, (even, odd))

    @property
    def is_open(self) -> bool:
        """Whether the decisions differ in their influence, so that there is something to find."""
        known = self.influence[~self.influence.isnan()]
        return len(known) > 1 and bool((known != known[0]).any())


@dataclass(frozen=True, eq=False)
class Intervals:
    """The ends of bootstrap intervals over continuations, ``[N]`` each, of the decisions of all questions in order."""

    influence: tuple[Tensor, Tensor]
    total: tuple[Tensor, Tensor]

    @staticmethod
    def of(questions: Sequence[Question]) -> Intervals:
        """Draws continuations with replacement, the same ones in every call."""
        tokens, rewards = _columns([decision for question in questions for decision in question.decisions])
        generator = torch.Generator().manual_seed(0)
        influence, total = bootstrap_variance(rewards, tokens, _SAMPLES, generator)
        return Intervals(_ends(influence), _ends(total))


def _columns(decisions: Sequence[Decision]) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([decision.tokens for decision in decisions])
    return tokens, torch.tensor([decision.rewards for decision in decisions], dtype=torch.float64)


def _ends(samples: Tensor) -> tuple[Tensor, Tensor]:
    low, high = samples.nanquantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).to(samples), dim=0)
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its interval; NaN where no question has a value.

    Attributes:
        mean: over questions.
        low: end of the interval.
        high: its other end.
        num: questions with a value.
    """

    mean: float
    low: float
    high: float
    num: int


def mean_over_questions(values: Sequence[float]) -> Estimate:
    """Averages a value of each question; the interval is that of a bootstrap over questions.

    Args:
        values: NaN where a question has none.
    """
    known = torch.tensor(values, dtype=torch.float64)
    known = known[~known.isnan()]
    if not len(known):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    generator = torch.Generator().manual_seed(0)
    means = known[torch.randint(len(known), (_SAMPLES * 5, len(known)), generator=generator)].mean(-1)
    low, high = _ends(means)
    return Estimate(float(known.mean()), float(low), float(high), len(known))


def order(column: ScoreColumn) -> Tensor:
    """``[P]`` numbers in the order in which decisions are taken: preferred ones first, then by score."""
    values = torch.tensor([float("-inf") if value is None else value for value in column.values], dtype=torch.float64)
    ranks = average_ranks(values)
    if not column.preferred:
        return ranks
    is_possible = values > float("-inf")
    return ranks + len(ranks) * (torch.tensor(column.preferred) & is_possible)


def correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's coefficient where both are known; NaN where one does not vary."""
    known = ~(x.isnan() | y.isnan())
    return float(rank_correlation(x[known], y[known])) if known.any() else float("nan")
