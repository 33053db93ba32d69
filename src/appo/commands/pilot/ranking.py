"""How well each scorer finds the decisions that matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from appo.commands.pilot.measures import Estimate, Measures, Variances, correlation, mean_over_questions, order
from appo.commands.pilot.records import ScoreColumn
from appo.commands.pilot.scoring import LATER
from appo.functional import top_precision, top_shares
from appo.monitoring.evaluation_metrics import pass_at_k

RANDOM, BY_INFLUENCE, BY_TOTAL = "a random decision", "oracle: Var_a Q", "oracle: Var R"
"""Criteria that are no scorers. An oracle chooses by one half of the continuations and is judged by the other."""

_NOTHING = mean_over_questions([])


@dataclass(frozen=True)
class Criterion:
    """A way to choose decisions, and what came of it.

    Attributes:
        name: of the scorer, or what chooses.
        influence: Spearman's coefficient of its order with evident ``Var_a Q`` among the decisions of a question.
        total: the same with ``Var R``.
        pooled: with evident ``Var_a Q`` among all decisions of all questions.
        precision: share of its first `B` decisions that are among the `B` of the largest evident ``Var_a Q``.
        reached: mean ``Var_a Q`` of its first `B` decisions; without bias, however coarse the measurement.
        passes: pass@k of continuations of its first decision, by `k`; empty where the reward does not tell.
    """

    name: str
    influence: Estimate
    total: Estimate
    pooled: float
    precision: Estimate
    reached: Estimate
    passes: Mapping[int, Estimate]


def rank_scorers(measured: Sequence[Measures], num_branches: int) -> list[Criterion]:
    """Every scorer that has scored a question, best first.

    Args:
        measured: a question each.
        num_branches: `B`.
    """
    names = sorted({name for each in measured for name in each.question.scores})
    found = [_criterion(name, measured, num_branches) for name in names]
    return sorted(found, key=lambda each: (each.influence.num == 0, -each.influence.mean, each.name))


def controls(measured: Sequence[Measures], num_branches: int) -> list[Criterion]:
    """What chance finds, and what somebody who knows finds.

    Args:
        measured: a question each.
        num_branches: `B`.
    """
    return [
        _chance(measured, num_branches),
        _oracle(BY_INFLUENCE, measured, num_branches, lambda half: half.influence),
        _oracle(BY_TOTAL, measured, num_branches, lambda half: half.total),
    ]


def reliability(measured: Sequence[Measures]) -> Estimate:
    """The agreement of ``Var_a Q`` with itself, were it measured again by as many continuations.

    Spearman's coefficient between the halves of the continuations, brought to their full number by the formula of
    Spearman and Brown: ``2 r / (1 + r)``. Coarse measurements hide good scores: a perfect one would reach a coefficient
    of about the square root of this.

    Args:
        measured: a question each.
    """
    values = [correlation(*(half.evident for half in each.halves)) for each in measured if each.is_open]
    # What only one half tells from 0 is no agreement.
    values = [0.0 if math.isnan(value) else value for value in values]
    half = mean_over_questions(values)
    mean, low, high = (2.0 * r / (1.0 + r) for r in (half.mean, half.low, half.high))
    return Estimate(mean, low, high, half.num)


@dataclass(frozen=True)
class Gain:
    """What a scorer finds more with what the policy has become.

    Attributes:
        name: of the scorer.
        before: Spearman's coefficient with ``Var_a Q``, with the policy that sampled.
        later: with what it has become.
        difference: the mean over questions that have both.
    """

    name: str
    before: Estimate
    later: Estimate
    difference: Estimate


def gains(measured: Sequence[Measures]) -> list[Gain]:
    """Of every scorer that has scored with both policies.

    Args:
        measured: a question each.
    """
    names = sorted({name for each in measured for name in each.question.scores if name.endswith(LATER)})
    found = []
    for later in names:
        name = later.removesuffix(LATER)
        pairs = [
            tuple(correlation(order(each.question.scores[key]), each.whole.evident) for key in (name, later))
            for each in measured
            if name in each.question.scores and later in each.question.scores
        ]
        before, after = ([pair[i] for pair in pairs] for i in (0, 1))
        difference = mean_over_questions([b - a for a, b in zip(before, after, strict=True)])
        found.append(Gain(name, mean_over_questions(before), mean_over_questions(after), difference))
    return found


def _criterion(name: str, measured: Sequence[Measures], num_branches: int) -> Criterion:
    scored = [each for each in measured if name in each.question.scores]
    orders = [order(each.question.scores[name]) for each in scored]
    pairs = list(zip(orders, scored, strict=True))
    precisions = [
        float(top_precision(ranks, _known(each.whole.evident), num_branches))
        for ranks, each in pairs
        if each.is_open and _has_room(each, num_branches)
    ]
    columns = [each.question.scores[name] for each in scored]
    joined = ScoreColumn(
        tuple(value for column in columns for value in column.values),
        tuple(flag for column in columns for flag in column.preferred),
    )
    return Criterion(
        name=name,
        influence=mean_over_questions([correlation(ranks, each.whole.evident) for ranks, each in pairs]),
        total=mean_over_questions([correlation(ranks, each.whole.total) for ranks, each in pairs]),
        pooled=correlation(order(joined), torch.cat([each.whole.evident for each in scored])),
        precision=mean_over_questions(precisions),
        reached=mean_over_questions(
            [
                _mean_of_top(ranks, each.whole.influence, num_branches)
                for ranks, each in pairs
                if _has_room(each, num_branches)
            ]
        ),
        passes={
            k: mean_over_questions([float(top_shares(ranks, 1) @ _pass_rates(each, k)) for ranks, each in pairs])
            for k in _ks(scored)
        },
    )


def _chance(measured: Sequence[Measures], num_branches: int) -> Criterion:
    roomy = [each for each in measured if _has_room(each, num_branches)]
    shares = [num_branches / len(each.whole.influence) for each in roomy if each.is_open]
    means = [float(each.whole.influence.nanmean()) for each in roomy]
    passes = {k: mean_over_questions([float(_pass_rates(each, k).mean()) for each in measured]) for k in _ks(measured)}
    precision, reached = mean_over_questions(shares), mean_over_questions(means)
    return Criterion(RANDOM, _NOTHING, _NOTHING, float("nan"), precision, reached, passes)


def _oracle(name: str, measured: Sequence[Measures], num_branches: int, by: Callable[[Variances], Tensor]) -> Criterion:
    """Chooses by one half of the continuations and counts the other, both ways round."""
    reached = [
        fmean(
            _mean_of_top(_known(by(half)), other.influence, num_branches)
            for half, other in zip(each.halves, reversed(each.halves), strict=True)
        )
        for each in measured
        if _has_room(each, num_branches)
    ]
    passes = {}
    for k in _ks(measured):
        rates = [
            fmean(
                float(top_shares(_known(by(half)), 1) @ _pass_rates(each, k, other))
                for half, other in zip(each.halves, (1, 0), strict=True)
            )
            for each in measured
        ]
        passes[k] = mean_over_questions(rates)
    return Criterion(name, _NOTHING, _NOTHING, float("nan"), _NOTHING, mean_over_questions(reached), passes)


def _has_room(measures: Measures, num_branches: int) -> bool:
    """Whether there are more decisions than branches."""
    return 0 < num_branches < len(measures.whole.influence)


def _mean_of_top(x: Tensor, influence: Tensor, num: int) -> float:
    """Of the influence that is known of the `num` largest of `x`."""
    shares = top_shares(x, num) * ~influence.isnan()
    return float(shares @ influence.nan_to_num() / shares.sum())


def _known(influence: Tensor) -> Tensor:
    """With the decisions last whose influence is not known."""
    return influence.nan_to_num(float("-inf"))


def _ks(measured: Sequence[Measures]) -> list[int]:
    """Powers of two up to what each half has; none where the reward does not tell right from wrong."""
    decisions = [decision for each in measured for decision in each.question.decisions]
    if not decisions or not all(decision.right for decision in decisions):
        return []
    most = min(decision.halves.count(number) for decision in decisions for number in (0, 1))
    return [2**i for i in range(most.bit_length())]


def _pass_rates(measures: Measures, k: int, half: int | None = None) -> Tensor:
    """``[P]`` pass@k of the continuations of every decision, or of one half of them."""
    decisions = measures.question.decisions
    found = [(decision if half is None else decision.half(half)).right for decision in decisions]
    return torch.tensor([pass_at_k(sum(right), len(right), k) for right in found], dtype=torch.float64)
