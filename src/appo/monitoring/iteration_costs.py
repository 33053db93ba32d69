"""What an iteration took, over all processes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from appo.monitoring.rollout_metrics import cost_metrics
from appo.policy.flops import TrainedWork, training_metrics
from appo.rollouts import Mismatch, SamplingCosts

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the system counts the memory of a process."""


@dataclass(frozen=True)
class IterationCosts:
    """What an iteration took on one process.

    Attributes:
        seconds: by phase; together `total_s`.
        total_s: of the whole iteration.
        num_tokens: that trajectories were sampled of.
        sampled: what the agent loop took, evaluation included.
        trained: what went through the policy.
        probe: the worst that the probe of the weights has found in the run.
        num_replaced: prompts in whose place others were trained.
        peak_bytes: of memory, as of `peak_memory`.
    """

    seconds: Mapping[str, float]
    total_s: float
    num_tokens: int
    sampled: SamplingCosts
    trained: TrainedWork
    probe: Mismatch
    num_replaced: int
    peak_bytes: int


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had since its start: of a GPU those of torch, else those of the process.

    Args:
        device: of the training.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def iteration_metrics(parts: Sequence[IterationCosts], device: torch.device) -> dict[str, float]:
    """What is logged of that, by the full names of metrics.

    Args:
        parts: of all processes.
        device: of the training.
    """
    # All wait for the slowest.
    slowest = {name: max(part.seconds.get(name, 0.0) for part in parts) for part in parts for name in part.seconds}
    num_tokens = [part.num_tokens for part in parts]
    sampled = SamplingCosts.of_all([part.sampled for part in parts])
    rollout = {
        **cost_metrics(slowest, max(part.total_s for part in parts), sum(num_tokens), sampled),
        "probe_mean": max(part.probe.mean for part in parts),
        "probe_max": max(part.probe.largest for part in parts),
        "prompts_replaced": float(sum(part.num_replaced for part in parts)),
        "peak_memory_gib": max(part.peak_bytes for part in parts) / 2**30,
    }
    if len(parts) > 1:
        rollout["rank_imbalance"] = max(num_tokens) * len(parts) / max(1, sum(num_tokens)) - 1.0
    training = training_metrics([part.trained for part in parts], slowest["update"], device)
    return {f"rollout/{k}": value for k, value in rollout.items()} | {f"train/{k}": v for k, v in training.items()}
