"""What is logged of an iteration's rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from appo.core.trajectory import RewardResult, ToolCall, Trajectory
from appo.distributed import comm
from appo.monitoring.branch_metrics import BRANCH_MEANS, Columns, branch_columns, to_column
from appo.rollouts.data import IterationData
from appo.rollouts.sampling import SamplingCosts

_PART, _OF_TOOL, _FAILURE, _FACTOR = "part ", "calls of ", "failures ", "factor "
"""How the names of columns begin of which there is one for each part of the reward, tool, kind of failure or
factor of the score."""


def rollout_metrics(collected: Sequence[IterationData]) -> dict[str, float]:
    """Scalars that describe an iteration, by name; with several processes, over all of them.

    Args:
        collected: all rollouts of the iteration.
    """
    gathered = comm.gather_on_first(rollout_columns(collected))
    # Values of other processes come over the network, millions of them: one process computes for all.
    return comm.broadcast(column_metrics(_joined(gathered)) if gathered else {})


def cost_metrics(
    seconds: Mapping[str, float], total_s: float, num_tokens: int, sampled: SamplingCosts
) -> dict[str, float]:
    """What an iteration took.

    Args:
        seconds: by phase.
        total_s: of the whole iteration.
        num_tokens: that trajectories were sampled of.
        sampled: what the agent loop took, evaluation included.

    Returns:
        Seconds by phase; `overhead`: the share of the iteration spent neither in the engine nor on log-probs, weights
        and the update; `trainer_idle`: the share in which the trainer waited for trajectories; `engine_idle`: the share
        in which the engine had nothing to generate; tokens per second of sampling.
    """

    def spent_on(*phases: str) -> float:
        return sum(seconds.get(phase, 0.0) for phase in phases)

    waiting_s = spent_on("sampling", "branching", "waiting")
    sampling_s = sampled.generating_s + sampled.tools_s
    working_s = waiting_s + spent_on("evaluation", "log_probs", "reference", "update", "weights")
    return {
        **{f"{phase}_s": value for phase, value in seconds.items()},
        "iteration_s": total_s,
        "overhead": 1.0 - working_s / total_s,
        "trainer_idle": (waiting_s + spent_on("tools")) / total_s,
        "engine_idle": 1.0 - sampled.generating_s / total_s,
        # With a lag, the last iteration samples nothing where no prompt may be branched.
        "tokens_per_s": sampled.num_tokens / sampling_s if sampling_s else 0.0,
        "generated_tokens": float(num_tokens),
    }


def rollout_columns(collected: Sequence[IterationData]) -> Columns:
    """Everything that metrics are made of, such that several processes' columns can be put one behind the other."""
    # A component may have computed on another device than the one where a process waits for the others' columns.
    collected = [part.to(torch.device("cpu")) for part in collected]
    roots = [trajectory for part in collected for trajectory in part.roots]
    branches = [trajectory for part in collected for trajectory in part.branches]
    return {
        **_rewards(collected),
        **_reward_parts([result for part in collected for result in part.results]),
        **_log_ratios(collected),
        **_scores(collected),
        **branch_columns(collected),
        **trajectory_columns([*roots, *branches]),
    }


def column_metrics(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics of an iteration.

    Args:
        columns: of `rollout_columns`.
    """
    rewards = torch.cat([columns["reward_initial"], columns["reward_branch"]])
    number = len(rewards)
    calls, calls_made = columns["tool_calls"], max(1.0, float(columns["tool_calls"].sum()))
    metrics = {
        "reward_mean": float(rewards.mean()),
        **_summary("reward_initial", columns["reward_initial"], mean=_mean, std=_std),
        **_summary("reward_branch", columns["reward_branch"], mean=_mean, std=_std),
        "flat_groups_initial": _mean(columns["flat_initial"]),
        "flat_groups_branch": _mean(columns["flat_branch"]),
        **{name: float(column.sum()) / number for name, column in _named(columns, _PART)},
        **_summary("log_ratio", columns["log_ratio"], mean=_mean, std=_std, max_abs=_max_abs),
        **_quantiles("log_ratio", columns["log_ratio"], (0.05, 0.5, 0.95)),
        **_summary("roots_changed", columns["changed"], share=_mean),
    }
    if len(columns["entropy"]):
        metrics["entropy"] = _mean(columns["entropy"])
    for name, column in _named(columns, _FACTOR):
        metrics |= _summary(f"score_{name}", column, mean=_mean, std=_std)
    metrics["branches_wanted"] = float(columns["branches_wanted"].sum())
    metrics["branches_made"] = float(len(columns["reward_branch"]))
    metrics |= _summary("branch_score", columns["branch_score"], mean=_mean)
    metrics |= {name: _mean(columns[name]) for name in BRANCH_MEANS if len(columns[name])}
    metrics |= _quantiles("branch_depth", columns["branch_depth"], (0.1, 0.5, 0.9))
    metrics |= {name: _mean(columns[name]) for name in ("response_length", "sampled_tokens")}
    metrics["tool_calls"] = float(calls.sum()) / number
    metrics["calls_made"] = float(columns["calls_made"].sum())
    metrics["tool_failures"] = float(columns["tool_failures"].sum()) / calls_made
    metrics["tool_seconds"] = float(columns["tool_seconds"].sum()) / calls_made
    metrics |= {name: _mean(columns[name]) for name in ("finished", "invented_results")}
    metrics |= {f"tool_calls_{name}": float(column.sum()) / number for name, column in _named(columns, _OF_TOOL)}
    for kind, column in _named(columns, _FAILURE):
        metrics[f"tool_failures_{kind}"] = float(column.sum()) / calls_made
    metrics |= _summary("mismatch", columns["mismatch"], mean=_mean, max=_max_abs)
    reusable = float(columns["reusable_tokens"].sum())
    if reusable:
        # Of the prefix tokens that the same weights had computed already, those that the cache served.
        metrics["prefix_cache_hit"] = float(columns["reused_tokens"].sum()) / reusable
    return metrics


def _joined(parts: Sequence[Columns]) -> Columns:
    """All columns, those of one name behind each other."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def _named(columns: Mapping[str, Tensor], prefix: str) -> list[tuple[str, Tensor]]:
    return sorted((name.removeprefix(prefix), column) for name, column in columns.items() if name.startswith(prefix))


def _reward_parts(results: Sequence[RewardResult]) -> Columns:
    """Every part of the rewards; a result without a part counts as 0."""
    names = sorted({name for result in results for name in result.parts})
    return {f"{_PART}{name}": to_column(result.parts.get(name, 0.0) for result in results) for name in names}


def trajectory_columns(trajectories: Sequence[Trajectory]) -> Columns:
    """Lengths, tool use and endings."""
    calls = [call for trajectory in trajectories for call in trajectory.tool_calls]
    return {
        "response_length": to_column(trajectory.response_length for trajectory in trajectories),
        "sampled_tokens": to_column(int(trajectory.response_mask.sum()) for trajectory in trajectories),
        "tool_calls": to_column(len(trajectory.tool_calls) for trajectory in trajectories),
        "calls_made": to_column(trajectory.num_own_calls for trajectory in trajectories),
        "tool_failures": to_column(call.failure is not None for call in calls),
        "tool_seconds": to_column(call.duration_s for call in calls),
        "invented_results": to_column(trajectory.invented_results for trajectory in trajectories),
        "finished": to_column(trajectory.finish_reason == "eos" for trajectory in trajectories),
        "reusable_tokens": to_column(trajectory.reusable_tokens for trajectory in trajectories),
        "reused_tokens": to_column(trajectory.reused_tokens for trajectory in trajectories),
        # The model may make up names without end.
        **{f"{_OF_TOOL}{name}": to_column([count]) for name, count in _known_tools(calls).items()},
        **{f"{_FAILURE}{kind}": to_column([count]) for kind, count in _failures(calls).items()},
    }


def _known_tools(calls: Iterable[ToolCall]) -> Counter[str]:
    return Counter(call.tool for call in calls if call.failure not in ("unknown", "malformed"))


def _failures(calls: Iterable[ToolCall]) -> Counter[str]:
    return Counter(call.failure for call in calls if call.failure is not None)


def _rewards(collected: Sequence[IterationData]) -> Columns:
    rewards = torch.cat([part.batch.rewards for part in collected])
    is_branch = torch.cat([part.batch.is_branch for part in collected])
    return {
        "reward_initial": rewards[~is_branch],
        "reward_branch": rewards[is_branch],
        "flat_initial": to_column(_flat_groups(collected, branches=False)),
        "flat_branch": to_column(_flat_groups(collected, branches=True)),
    }


def _flat_groups(collected: Sequence[IterationData], branches: bool) -> list[bool]:
    """For each prompt with at least one row of the kind: whether their rewards are all equal."""
    flat = []
    for part in collected:
        rows = part.batch.is_branch == branches
        for number in part.batch.group[rows].unique():
            rewards = part.batch.rewards[rows & (part.batch.group == number)]
            flat.append(bool((rewards == rewards[0]).all()))
    return flat


def _log_ratios(collected: Sequence[IterationData]) -> Columns:
    """The policy that chose branches, or began the update, against the one that sampled the roots.

    Where the two are one policy, the log-ratio is 0 and the likelihood gain says nothing: `changed` tells of each root
    whether it was sampled by another. `mismatch` is the distance of the engine's log-probs from the trainer's where
    both had the same weights.
    """
    ratios, entropies, mismatches, changed = ([torch.empty(0)] for _ in range(4))
    for part in collected:
        batch = part.batch
        rows = batch.is_evaluated & ~batch.is_branch
        mask = batch.response_mask & rows.unsqueeze(-1)
        is_same = batch.policy_versions == batch.evaluated_by.unsqueeze(-1)
        sampling = batch.behavior_log_probs if batch.sampling_log_probs is None else batch.sampling_log_probs
        ratios.append((batch.old_log_probs - sampling).where(~is_same, 0.0)[mask])
        entropies.append(batch.entropies[mask])
        mismatches.append((batch.old_log_probs - batch.behavior_log_probs)[mask & is_same].abs())
        changed.append((mask & ~is_same).any(-1)[rows].float())
    return {
        "log_ratio": torch.cat(ratios),
        "entropy": torch.cat(entropies),
        "mismatch": torch.cat(mismatches),
        "changed": torch.cat(changed),
    }


def _scores(collected: Sequence[IterationData]) -> Columns:
    """The factors of the scores of sampled tokens."""
    factors: dict[str, list[Tensor]] = {}
    for part in collected:
        for name, factor in part.scores.factors.items():
            rows, width = factor.shape
            factors.setdefault(name, []).append(factor[part.batch.response_mask[:rows, :width]])
    return {f"{_FACTOR}{name}": torch.cat(values) for name, values in factors.items()}


def _summary(name: str, values: Tensor, **functions: Callable[[Tensor], float]) -> dict[str, float]:
    """Functions of a column, by its name and theirs; nothing of an empty one."""
    return {f"{name}_{key}": function(values) for key, function in functions.items()} if len(values) else {}


def _quantiles(name: str, values: Tensor, levels: Sequence[float]) -> dict[str, float]:
    """By sorting: `torch.quantile` refuses more than 2**24 values."""
    if not len(values):
        return {}
    ordered = values.float().sort().values
    return {f"{name}_q{int(100 * level):02d}": float(ordered[round(level * (len(ordered) - 1))]) for level in levels}


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _std(values: Tensor) -> float:
    return float(values.std(correction=0))


def _max_abs(values: Tensor) -> float:
    return float(values.abs().max())
