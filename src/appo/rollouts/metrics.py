"""What is logged of an iteration's rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from appo.rollouts.collector import NOT_MEASURED, Rollouts
from appo.trajectory import Outcome, Trajectory


def rollout_metrics(rounds: Sequence[Rollouts]) -> dict[str, float]:
    """Scalars that describe an iteration, by name.

    Args:
        rounds: all rollouts of the iteration.
    """
    initial = [trajectory for part in rounds for trajectory in part.plan.initial]
    branches = [trajectory for part in rounds for trajectory in part.trajectories[len(part.plan.initial) :]]
    outcomes = [outcome for part in rounds for outcome in part.outcomes]
    return {
        **_rewards(rounds),
        **_outcomes(outcomes),
        **_log_ratios(rounds),
        **_scores(rounds),
        **_branches(rounds, branches),
        **trajectory_metrics([*initial, *branches]),
        **_mismatch(rounds),
        **_prefix_reuse([*initial, *branches]),
    }


def cost_metrics(seconds: Mapping[str, float], total_s: float, num_tokens: int) -> dict[str, float]:
    """What an iteration took.

    Args:
        seconds: by phase.
        total_s: of the whole iteration.
        num_tokens: that were sampled.

    Returns:
        Seconds by phase, tokens per second of sampling, and `overhead`: the share of the iteration spent neither
        in the engine nor on log-probs, weights and the update.
    """
    sampling_s = seconds.get("sampling", 0.0) + seconds.get("branching", 0.0)
    working_s = sampling_s + sum(seconds.get(phase, 0.0) for phase in ("log_probs", "reference", "update", "weights"))
    return {
        **{f"{phase}_s": value for phase, value in seconds.items()},
        "iteration_s": total_s,
        "overhead": 1.0 - working_s / total_s,
        "tokens_per_s": num_tokens / sampling_s,
        "generated_tokens": float(num_tokens),
    }


def _outcomes(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means of every part of the rewards."""
    names = sorted({name for outcome in outcomes for name in outcome.parts})
    return {name: _mean(outcome.parts.get(name, 0.0) for outcome in outcomes) for name in names}


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Lengths, tool use and endings."""
    calls = [call for trajectory in trajectories for call in trajectory.tool_calls]
    metrics = {
        "response_length": _mean(trajectory.response_length for trajectory in trajectories),
        "sampled_tokens": _mean(int(trajectory.response_mask.sum()) for trajectory in trajectories),
        "tool_calls": len(calls) / len(trajectories),
        "tool_failures": sum(call.failure is not None for call in calls) / max(1, len(calls)),
        "tool_seconds": _mean(call.duration_s for call in calls),
        "finished": _mean(trajectory.finish_reason == "eos" for trajectory in trajectories),
    }
    # The model may make up names without end.
    for name in sorted({call.tool for call in calls if call.failure not in ("unknown", "malformed")}):
        metrics[f"tool_calls_{name}"] = sum(call.tool == name for call in calls) / len(trajectories)
    for kind in sorted({call.failure for call in calls if call.failure is not None}):
        metrics[f"tool_failures_{kind}"] = sum(call.failure == kind for call in calls) / len(calls)
    return metrics


def _rewards(rounds: Sequence[Rollouts]) -> dict[str, float]:
    rewards = torch.cat([part.batch.rewards for part in rounds])
    is_branch = torch.cat([part.batch.is_branch for part in rounds])
    metrics = {"reward_mean": float(rewards.mean())}
    for name, mask in (("initial", ~is_branch), ("branch", is_branch)):
        if mask.any():
            metrics[f"reward_{name}_mean"] = float(rewards[mask].mean())
            metrics[f"reward_{name}_std"] = float(rewards[mask].std(correction=0))
    metrics["flat_groups_initial"] = _mean(_flat_groups(rounds, branches=False))
    metrics["flat_groups_branch"] = _mean(_flat_groups(rounds, branches=True))
    return metrics


def _flat_groups(rounds: Sequence[Rollouts], branches: bool) -> list[bool]:
    """For each prompt with at least one row of the kind: whether their rewards are all equal."""
    flat = []
    for part in rounds:
        rows = part.batch.is_branch == branches
        for number in part.batch.group[rows].unique():
            rewards = part.batch.rewards[rows & (part.batch.group == number)]
            flat.append(bool((rewards == rewards[0]).all()))
    return flat


def _log_ratios(rounds: Sequence[Rollouts]) -> dict[str, float]:
    """The policy at the moment of branching against the one that sampled; without spread the gain says nothing."""
    measured = [_measured_initial(part) for part in rounds]
    values = torch.cat([(old - behavior)[mask] for old, behavior, _, mask in measured])
    if not len(values):
        return {}
    quantiles = _quantiles(values, (0.05, 0.5, 0.95))
    return {
        "log_ratio_mean": float(values.mean()),
        "log_ratio_std": float(values.std(correction=0)),
        "log_ratio_max_abs": float(values.abs().max()),
        **{f"log_ratio_q{int(100 * level):02d}": value for level, value in quantiles.items()},
        "entropy": float(torch.cat([entropies[mask] for _, _, entropies, mask in measured]).mean()),
    }


def _measured_initial(part: Rollouts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old and behavior log-probs, entropies and mask of the initial trajectories that were measured."""
    rows = (part.measured_by[: len(part.plan.initial)] != NOT_MEASURED).nonzero()[:, 0]
    batch = part.batch
    columns = (batch.old_log_probs, batch.behavior_log_probs, batch.entropies, batch.response_mask)
    old, behavior, entropies, mask = (column[rows] for column in columns)
    return old, behavior, entropies, mask


def _mismatch(rounds: Sequence[Rollouts]) -> dict[str, float]:
    """Distance of the engine's log-probs from the trainer's where both had the same weights."""
    differences = [
        (log_probs[: len(trajectory)] - trajectory.behavior_log_probs)[trajectory.policy_versions == version]
        for part in rounds
        for trajectory, log_probs, version in zip(
            part.plan.initial, part.batch.old_log_probs, part.measured_by.tolist(), strict=False
        )
        if version != NOT_MEASURED
    ]
    values = torch.cat([torch.empty(0), *differences]).abs()
    return {"mismatch_mean": float(values.mean()), "mismatch_max": float(values.max())} if len(values) else {}


def _prefix_reuse(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Share of the prefix tokens already computed by the same weights that were served from the cache."""
    reusable = sum(trajectory.reusable_tokens for trajectory in trajectories)
    reused = sum(trajectory.reused_tokens for trajectory in trajectories)
    return {"prefix_cache_hit": reused / reusable} if reusable else {}


def _scores(rounds: Sequence[Rollouts]) -> dict[str, float]:
    metrics = {}
    for name in rounds[0].plan.scores.factors:
        values = torch.cat([part.plan.scores.factors[name][part.plan.batch.response_mask] for part in rounds])
        metrics[f"score_{name}_mean"] = float(values.mean())
        metrics[f"score_{name}_std"] = float(values.std(correction=0))
    return metrics


def _branches(rounds: Sequence[Rollouts], branches: Sequence[Trajectory]) -> dict[str, float]:
    points = [point for part in rounds for point in part.plan.points]
    metrics = {
        "branches_wanted": float(sum(part.plan.num_wanted for part in rounds)),
        "branches_made": float(len(branches)),
    }
    if points:
        depth = torch.tensor(
            [(p.position + 1 - p.trajectory.prompt_length) / p.trajectory.response_length for p in points]
        )
        metrics["branch_score_mean"] = _mean(point.score for point in points)
        metrics |= {f"branch_depth_q{int(100 * q):02d}": v for q, v in _quantiles(depth, (0.1, 0.5, 0.9)).items()}
    return metrics


def _quantiles(values: Tensor, levels: Sequence[float]) -> dict[float, float]:
    """By sorting: `torch.quantile` refuses more than 2**24 values."""
    ordered = values.float().sort().values
    return {level: float(ordered[round(level * (len(ordered) - 1))]) for level in levels}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / max(1, len(listed))
