"""The scorers that a pilot study compares, and what they say of the same roots."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.seeding import derive_seed
from appo.core.trajectory import Trajectory
from appo.rollouts import Policy
from appo.scorers import SCORERS, BatchContext, Entropy, NoBranching, Oracle, Scorer, Scores

LATER = ", later policy"
"""Behind the name of a scorer that scores with what the policy has become."""


class ScorerSet:
    """Every registered scorer that its defaults suffice for, that of the configuration, and an oracle if there is one.

    Args:
        configured: scorer of the configuration.
        influence: import path of a function that knows the influence of every token, as `Oracle` takes it.
        policy: evaluates sequences for scorers that ask for it.
        tokenizer: of the policy.
        seed: of scorers that draw.

    Raises:
        ValueError: if `influence` is no such function.
    """

    def __init__(self, configured: Scorer, influence: str | None, policy: Policy, tokenizer: Any, seed: int) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.seed = seed
        self.scorers: dict[str, Scorer] = {}
        self.skipped: dict[str, str] = {}
        """Why a registered scorer is not among them."""
        for name in SCORERS:
            needed = [
                option.name
                for option in inspect.signature(SCORERS[name]).parameters.values()
                if option.default is option.empty and option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
            ]
            if SCORERS[name] is NoBranching:
                self.skipped[name] = "refuses every position"
            elif needed:
                self.skipped[name] = f"has no defaults for {', '.join(needed)}"
            else:
                self.scorers[name] = SCORERS[name]()
        self._add(type(configured).__name__, configured)
        if influence is not None:
            self._add(Oracle.__name__, Oracle(influence))
        oracles = [scorer for scorer in self.scorers.values() if isinstance(scorer, Oracle)]
        self.oracle = oracles[-1] if oracles else None
        """Knows the influence of every token; None if nobody does."""

    def _add(self, name: str, scorer: Scorer) -> None:
        if isinstance(scorer, NoBranching) or self.scorers.get(name) == scorer:
            return
        self.skipped.pop(name, None)
        self.scorers[f"{name} (configured)" if name in self.scorers else name] = scorer

    def known_influence(self, batch: TrajectoryBatch, trajectories: Sequence[Trajectory]) -> Tensor | None:
        """``[B, T]`` of the sampled tokens, ``-inf`` elsewhere; None without an oracle."""
        if self.oracle is None:
            return None
        return self.oracle(batch, self._context(trajectories, Oracle.__name__)).values

    def __call__(
        self, batch: TrajectoryBatch, trajectories: Sequence[Trajectory], later: TrajectoryBatch | None
    ) -> tuple[Mapping[str, Scores], Mapping[str, str]]:
        """Scores the roots of one question.

        Args:
            batch: rewarded and evaluated.
            trajectories: a row each.
            later: the same, evaluated by what the policy has become; None without one.

        Returns:
            Scores by name, and why there are none of others.
        """
        scores: dict[str, Scores] = {}
        skipped = dict(self.skipped)
        todo = [(name, scorer, batch) for name, scorer in self.scorers.items()]
        if later is not None:
            todo += [
                (name + LATER, scorer, later)
                for name, scorer in self.scorers.items()
                if scorer.compares_policies or isinstance(scorer, Entropy)
            ]
        for name, scorer, of in todo:
            try:
                scores[name] = scorer(of, self._context(trajectories, name))
            except ValueError as error:
                skipped[name] = str(error)
        return scores, skipped

    def _context(self, trajectories: Sequence[Trajectory], name: str) -> BatchContext:
        seed = derive_seed(self.seed, "pilot", "scorer", name, trajectories[0].prompt.id)
        generator = torch.Generator().manual_seed(seed)
        return BatchContext(generator, trajectories, self.tokenizer, self.policy.log_probs)
