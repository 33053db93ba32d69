"""Scorers that branch behind tool results, where the entropy says how likely."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import penalized_draws, turn_numbers, turn_openings, turn_starts
from appo.scorers.base import SCORERS, Scorer, Scores


@dataclass(frozen=True)
class ToolEntropyScorer(Scorer):
    """Draws, behind every tool result, whether to branch there; what the result did to the entropy shifts the odds.

    Results are drawn in the order in which they come in when all trajectories of a prompt advance turn by turn, and
    branches leave there in that order until the budget is spent. What is left of it goes to trajectories from the
    beginning, which are branches that leave at the prompt.
    """

    entropy_weight: float = 0.2
    """How strongly the entropy change shifts the odds of a branch."""
    window: int = 20
    """Tokens at the beginning of a turn whose entropies are added up, at most."""
    entropy_scale: float = 11.93
    """Nats that count 1: the logarithm of the size of the policy's vocabulary; that of Qwen2.5 is 11.93."""

    def __post_init__(self) -> None:
        if not self.entropy_weight >= 0.0:
            raise ValueError(f"entropy_weight must not be negative, got {self.entropy_weight}")
        if self.window < 1:
            raise ValueError(f"window must be positive, got {self.window}")
        if not self.entropy_scale > 0.0:
            raise ValueError(f"entropy_scale must be positive, got {self.entropy_scale}")

    @abstractmethod
    def draw(self, uniform: Tensor, change: Tensor, is_result: Tensor, batch: TrajectoryBatch) -> Tensor:
        """Where to branch.

        Args:
            uniform: ``[B, T]`` random numbers in [0, 1).
            change: ``[B, T]`` entropy of the turn that begins at a position, minus that of the trajectory's first turn.
            is_result: ``[B, T]`` bool, True on the first token behind each tool result.
            batch: what is scored.

        Returns:
            ``[B, T]`` bool; read where `is_result`.
        """

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        mask = batch.response_mask
        starts, turns = turn_starts(mask), turn_numbers(mask)
        entropy = turn_openings(batch.entropies, mask, self.window) / self.entropy_scale
        first = entropy.where(starts & (turns == 0), 0.0).sum(-1, keepdim=True)
        change = (entropy - first).where(mask, 0.0)
        uniform = torch.rand(mask.shape, generator=context.generator, device=context.generator.device).to(mask.device)
        is_result = starts & (turns > 0)
        drawn = is_result & self.draw(uniform, change, is_result, batch)
        at_prompt = starts & (turns == 0)
        # Earlier results first; at the prompt only when no result is left.
        values = torch.where(drawn, 1.0 / turns.clamp(min=1), 0.0).where(drawn | at_prompt, float("-inf"))
        return Scores(values, preferred=drawn, factors={"entropy_change": change}, at_turns=True)


@SCORERS.register
@dataclass(frozen=True)
class ToolBoundary(ToolEntropyScorer):
    """Branches behind a tool result with a probability that rises with the entropy that follows it.

    ``P(branch) = clip(probability + entropy_weight * change, 0, 1)``

    See "Agentic Reinforced Policy Optimization" (https://arxiv.org/abs/2507.19849), section 3.1.
    """

    probability: float = 0.5
    """Probability of a branch where the entropy did not change, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")

    def draw(self, uniform: Tensor, change: Tensor, is_result: Tensor, batch: TrajectoryBatch) -> Tensor:
        return uniform < self.probability + self.entropy_weight * change


@SCORERS.register
@dataclass(frozen=True)
class BalancedEntropy(ToolEntropyScorer):
    """Branches behind a tool result like `ToolBoundary`, the less likely the more results in a row had a branch.

    A branch leaves where ``(uniform + entropy_weight * change) * max(0, 1 - penalty * l) >= threshold``; `l` counts the
    results of the prompt just before, in the order of drawing, that had a branch.

    See "Agentic Entropy-Balanced Policy Optimization" (https://arxiv.org/abs/2510.14545), section 3.2; the random
    number stands for its constant, as in public implementations.
    """

    penalty: float = 0.05
    """What each branch in a row takes off the odds of the next, in [0, 1]."""
    threshold: float = 0.5
    """What the odds must reach, in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.penalty <= 1.0:
            raise ValueError(f"penalty must lie in [0, 1], got {self.penalty}")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold}")

    def draw(self, uniform: Tensor, change: Tensor, is_result: Tensor, batch: TrajectoryBatch) -> Tensor:
        rows, positions = is_result.nonzero(as_tuple=True)
        order = turn_numbers(batch.response_mask)[rows, positions].argsort(stable=True)
        rows, positions = rows[order], positions[order]
        odds = (uniform + self.entropy_weight * change)[rows, positions].clamp(min=0.0)
        drawn = torch.zeros_like(is_result)
        drawn[rows, positions] = penalized_draws(odds, batch.group[rows], self.penalty, self.threshold)
        return drawn
