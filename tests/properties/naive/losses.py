"""What each loss computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from appo.core.batch import TrajectoryBatch
from tests.properties.naive.common import bounded, future


@dataclass(frozen=True)
class TrainedRow:
    """One row of an optimizer step in numbers, by the positions that are trained.

    Attributes:
        compared: log-probs of the policy that the importance ratio compares with.
        held: log-probs of the live policy, where the loss holds them constant.
    """

    positions: list[int]
    compared: dict[int, float]
    advantages: dict[int, float]
    held: dict[int, float]


Terms = Callable[[Any, TrainedRow, Mapping[int, float]], dict[int, float]]
"""The surrogate of every trained token, from the loss, the row, and the live log-probs."""
Keeps = Callable[[Any, TrainedRow], bool]
"""Whether the surrogate of a row counts, from the loss and the row."""


def clipped_term(loss: Any, advantage: float, ratio: float) -> float:
    """PPO's clipped objective, negated; with a dual clip bounded for negative advantages too."""
    clipped = bounded(ratio, 1 - loss.clip_low, 1 + loss.clip_high)
    term = max(-advantage * ratio, -advantage * clipped)
    return min(term, -advantage * loss.dual_clip) if advantage < 0 and loss.dual_clip is not None else term


def clipped(loss: Any, row: TrainedRow, live: Mapping[int, float]) -> dict[int, float]:
    """PPO, GRPO."""
    return {t: clipped_term(loss, row.advantages[t], math.exp(live[t] - row.compared[t])) for t in row.positions}


def sequence_clipped(loss: Any, row: TrainedRow, live: Mapping[int, float]) -> dict[int, float]:
    """GSPO in its token form: the row's ratio, through which each token keeps its own gradient."""
    if not row.positions:
        return {}
    log_ratio = mean([row.held[t] - row.compared[t] for t in row.positions])
    return {
        t: clipped_term(loss, row.advantages[t], math.exp(log_ratio + live[t] - row.held[t])) for t in row.positions
    }


def clipped_importance(loss: Any, row: TrainedRow, live: Mapping[int, float]) -> dict[int, float]:
    """CISPO: the clipped ratio is a constant weight of the log-prob."""
    weights = {
        t: bounded(math.exp(row.held[t] - row.compared[t]), 1 - loss.clip_low, 1 + loss.clip_high)
        for t in row.positions
    }
    return {t: -weights[t] * row.advantages[t] * live[t] for t in row.positions}


def clip_balanced(loss: Any, row: TrainedRow, live: Mapping[int, float]) -> dict[int, float]:
    """AEPO: above the upper clip the value is the clipped one, the gradient that of a token at the clip."""
    terms = clipped(loss, row, live)
    for t in row.positions:
        highest = 1 + loss.clip_high
        if row.advantages[t] > 0 and math.exp(row.held[t] - row.compared[t]) > highest:
            terms[t] = -row.advantages[t] * highest * math.exp(live[t] - row.held[t])
    return terms


def future_weight(loss: Any, row: TrainedRow, t: int) -> float:
    """How much likelier the policy has become to go on as the row did after `t`."""
    log_ratio = {k: bounded(row.held[k] - row.compared[k], -20, 20) for k in row.positions}
    most = math.inf if loss.dual_clip is None else math.log(loss.dual_clip)
    taking_part = {k: value for k, value in log_ratio.items() if value <= most}
    weight = math.exp(bounded(future(taking_part, t, 2 ** (-1 / loss.future_half_life)), -20, 20))
    if loss.future_clip > 0:
        weight = bounded(weight, 1 if loss.high_only else 1 - loss.future_clip, 1 + loss.future_clip)
    else:
        weight = min(weight, 10.0)
    threshold = math.inf if loss.safety_threshold is None else loss.safety_threshold
    is_unsafe = row.advantages[t] < 0 and math.exp(log_ratio[t]) > threshold
    return bounded(weight, 0.8, 1.0) if is_unsafe else weight


def procedural(loss: Any, row: TrainedRow, live: Mapping[int, float]) -> dict[int, float]:
    """APPO: the clipped surrogate of advantages that grow with the future likelihood."""
    unit = 1 + loss.future_weight if loss.normalized else 1
    return {
        t: clipped_term(
            loss,
            row.advantages[t] * (1 + loss.future_weight * future_weight(loss, row, t)) / unit,
            math.exp(live[t] - row.compared[t]),
        )
        for t in row.positions
    }


def always(loss: Any, row: TrainedRow) -> bool:
    """Every row counts."""
    return True


def has_not_run_away(loss: Any, row: TrainedRow) -> bool:
    """At most one token of the row is above the dual clip with a negative advantage."""
    if not loss.sequence_filter:
        return True
    ratios = [math.exp(row.held[t] - row.compared[t]) for t in row.positions if row.advantages[t] < 0]
    return sum(ratio > loss.dual_clip for ratio in ratios) <= 1


def divergence(kind: str, difference: float) -> float:
    """An estimate of the divergence at a token, from ``log p - log p_ref``."""
    if kind == "k3":
        return min(math.exp(-difference) + difference - 1, 10.0)
    return {"k1": difference, "abs": abs(difference), "k2": difference**2 / 2}[kind]


def behavior_weight(loss: Any, log_weights: list[float]) -> list[float]:
    """The factors of a row's terms that make up for another policy having sampled them."""
    if loss.behavior_correction == "off" or loss.ratio_to == "sampling":
        return [1.0] * len(log_weights)
    if loss.behavior_correction == "truncate":
        return [min(math.exp(value), loss.behavior_cap) for value in log_weights]
    is_near = not log_weights or 1 / loss.behavior_cap <= math.exp(mean(log_weights)) <= loss.behavior_cap
    return [float(is_near)] * len(log_weights)


def aggregate(
    mode: str, values: list[list[float]], batch: TrajectoryBatch, length: int | None = None, rows: str = "trained"
) -> float:
    """One number of the values of each row; an empty row counts only in totals that the batch is given."""
    if mode == "token-mean":
        return sum(map(sum, values)) / (batch.num_tokens or max(1, sum(map(len, values))))
    if rows == "all":
        num_rows = batch.num_trajectories or len(batch)
    else:
        num_rows = batch.num_rows or max(1, sum(map(bool, values)))
    if mode == "sequence-mean":
        return sum(sum(row) / len(row) for row in values if row) / num_rows
    return sum(map(sum, values)) / num_rows / (length if mode == "constant" and length is not None else 1)


def loss_of_step(
    loss: Any,
    terms: Terms,
    keeps: Keeps,
    batch: TrajectoryBatch,
    log_probs: Sequence[Sequence[float]],
    entropies: Sequence[Sequence[float]],
    held: Sequence[Sequence[float]],
) -> tuple[float, dict[str, float]]:
    """The loss, and those of its metrics that are means.

    Args:
        loss: with its options.
        terms: its surrogate.
        keeps: which rows its surrogate counts.
        batch: the rows.
        log_probs: of the live policy, by row and position.
        entropies: of the live policy.
        held: the live log-probs once more, for what the loss holds constant.
    """
    old, behavior = batch.old_log_probs.tolist(), batch.behavior_log_probs.tolist()
    compared = behavior if loss.ratio_to == "sampling" else old
    assert batch.ref_log_probs is not None
    reference, advantages = batch.ref_log_probs.tolist(), batch.advantages.tolist()
    surrogate, divergences, uncertainties, log_ratios = [], [], [], []
    for i, mask in enumerate(batch.response_mask if batch.train_mask is None else batch.train_mask):
        positions = mask.nonzero()[:, 0].tolist()
        row = TrainedRow(positions, *({t: column[i][t] for t in positions} for column in (compared, advantages, held)))
        weights = behavior_weight(loss, [old[i][t] - behavior[i][t] for t in positions])
        by_position = terms(loss, row, dict(enumerate(log_probs[i])))
        if keeps(loss, row):
            surrogate.append([by_position[t] * weight for t, weight in zip(positions, weights, strict=True)])
        divergences.append([divergence(loss.kl, log_probs[i][t] - reference[i][t]) for t in positions])
        uncertainties.append([entropies[i][t] for t in positions])
        log_ratios.append([log_probs[i][t] - compared[i][t] for t in positions])
    policy_loss, bonus, penalty = (
        aggregate(loss.aggregation, values, batch, loss.aggregation_length, loss.rows)
        for values in (surrogate, uncertainties, divergences)
    )
    means = {
        "entropy": uncertainties,
        "approx_kl": [[-value for value in row] for row in log_ratios],
        "ratio": [[math.exp(value) for value in row] for row in log_ratios],
    }
    if loss.kl_coef > 0:
        means["kl"] = divergences
    metrics = {name: aggregate("token-mean", values, batch) for name, values in means.items()}
    return policy_loss - loss.entropy_coef * bonus + loss.kl_coef * penalty, {"policy_loss": policy_loss, **metrics}
