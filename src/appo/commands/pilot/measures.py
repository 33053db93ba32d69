"""The estimates of a pilot study at every decision, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from appo.commands.pilot.records import Decision, Question, ScoreColumn
from appo.functional import average_ranks, bootstrap_variance, influence_p_values, rank_correlation, reward_variance

LEVEL = 0.95
"""Of all intervals."""

_SAMPLES = 400
"""Of every bootstrap."""

_PERMUTATIONS = 4000
"""Of a permutation test at most: the p-values that decide what is evident are known to within 0.004."""

EVIDENT = 0.05
"""The p-value up to which an influence is told from 0."""


class Variances(NamedTuple):
    """Estimates of decisions, ``[P]`` each.

    Attributes:
        mean: of the reward.
        total: ``Var R``.
        influence: ``Var_a Q``, without bias; NaN where all tokens drawn differ.
        evident: the same where a permutation test tells it from 0, else 0: what ranks go by. Of tokens that decide
            nothing, the estimates themselves lie above and below those of tokens that are certain, which are 0.
    """

    mean: Tensor
    total: Tensor
    influence: Tensor
    evident: Tensor

    @staticmethod
    def of(decisions: Sequence[Decision]) -> Variances:
        """Estimates by the continuations of each decision."""
        generator = torch.Generator().manual_seed(0)

        def estimate(rewards: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            mean, total, influence = reward_variance(rewards, tokens, mask)
            is_evident = influence_p_values(rewards, tokens, _PERMUTATIONS, generator, mask) <= EVIDENT
            return mean, total, influence, influence.where(is_evident | influence.isnan(), 0.0)

        return Variances(*_of_all(decisions, estimate))

    def split(self, sizes: Sequence[int]) -> Iterator[Variances]:
        """Those of the decisions of one question after the other."""
        return map(Variances._make, zip(*(values.split(list(sizes)) for values in self), strict=True))


@dataclass(frozen=True, eq=False)
class Measures:
    """Of the decisions of one question.

    Attributes:
        question: what was measured.
        whole: by all continuations.
        halves: by those of either half, which are independent of each other.
    """

    question: Question
    whole: Variances
    halves: tuple[Variances, Variances]

    @staticmethod
    def of(questions: Sequence[Question]) -> list[Measures]:
        """Estimates everything, of all questions at once."""
        decisions = [decision for question in questions for decision in question.decisions]
        halves = ([decision.half(number) for decision in decisions] for number in (0, 1))
        sizes = [len(question.decisions) for question in questions]
        parts = (Variances.of(each).split(sizes) for each in (decisions, *halves))
        return [Measures(question, whole, (a, b)) for question, whole, a, b in zip(questions, *parts, strict=True)]

    @property
    def is_open(self) -> bool:
        """Whether the decisions differ evidently in their influence, so that there is something to find."""
        known = self.whole.evident[~self.whole.evident.isnan()]
        return len(known) > 1 and bool((known != known[0]).any())


@dataclass(frozen=True, eq=False)
class Intervals:
    """The ends of bootstrap intervals over continuations, ``[N]`` each, of the decisions of all questions in order."""

    influence: tuple[Tensor, Tensor]
    total: tuple[Tensor, Tensor]

    @staticmethod
    def of(questions: Sequence[Question]) -> Intervals:
        """Draws continuations with replacement, the same ones in every call."""
        decisions = [decision for question in questions for decision in question.decisions]
        generator = torch.Generator().manual_seed(0)
        influence, total = _of_all(
            decisions,
            lambda rewards, tokens, mask: bootstrap_variance(rewards, tokens, _SAMPLES, generator, mask),
        )
        return Intervals(_ends(influence), _ends(total))


def _of_all(
    decisions: Sequence[Decision], estimate: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """Estimates in the order of the decisions, those together that have about as many continuations.

    Args:
        decisions: ``P`` of them.
        estimate: makes ``[..., P']`` tensors of ``[P', K]`` rewards, tokens and mask.
    """
    rows: dict[int, list[int]] = {}
    for row, decision in enumerate(decisions):
        rows.setdefault(len(decision.tokens).bit_length(), []).append(row)
    found = [estimate(*_padded([decisions[row] for row in members])) for members in rows.values()]
    order = torch.tensor([row for members in rows.values() for row in members]).argsort()
    return [torch.cat(columns, -1)[..., order] for columns in zip(*found, strict=True)]


def _padded(decisions: Sequence[Decision]) -> tuple[Tensor, Tensor, Tensor]:
    """``[P, K]`` rewards, tokens, and which of them are there: `K` is the largest number of continuations."""
    rewards = [torch.tensor(decision.rewards, dtype=torch.float64) for decision in decisions]
    tokens = pad_sequence([torch.tensor(decision.tokens) for decision in decisions], batch_first=True)
    numbers = torch.tensor([len(decision.tokens) for decision in decisions])
    mask = torch.arange(tokens.shape[-1]) < numbers.unsqueeze(-1)
    return pad_sequence(rewards, batch_first=True), tokens, mask


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
