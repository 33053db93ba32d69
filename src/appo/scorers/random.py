"""Scorers that do not look at the policy: chance, over tokens or over turns, and none."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import turn_starts
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class RandomPosition(Scorer):
    """Uniform random numbers: every sampled token is as likely to be chosen as any other."""

    reads_log_probs = False

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        uniform = torch.rand(batch.token_ids.shape, generator=context.generator, device=context.generator.device)
        return Scores(uniform.to(batch.token_ids.device).where(batch.response_mask, float("-inf")))


@SCORERS.register
@dataclass(frozen=True)
class TreeUniform(Scorer):
    """Uniform over the nodes of a trajectory that have a successor: the prompt and every tool result.

    A node is chosen again only when all of them are; that takes `rollout.branching.repeat`.

    See "Tree Search for LLM Agent Reinforcement Learning" (https://arxiv.org/abs/2509.21240), section 3.2.
    """

    reads_log_probs = False

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        mask = batch.response_mask
        uniform = torch.rand(mask.shape, generator=context.generator, device=context.generator.device).to(mask.device)
        return Scores(uniform.where(turn_starts(mask), float("-inf")), at_turns=True)


@SCORERS.register
@dataclass(frozen=True)
class NoBranching(Scorer):
    """Refuses every position, so that all trajectories are roots."""

    reads_log_probs = False

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        return Scores(torch.full_like(batch.entropies, float("-inf")))
