"""What every scorer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.registry import Registry
from appo.core.trajectory import Trajectory

Known = TypeVar("Known")

LogProbs = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""Log-probs of token sequences under the current policy: of ``[N_i]`` int64 sequences and ``[N_i]`` bool masks,
``[M_i]`` of the `M_i` tokens under each mask, in their order."""


def no_policy(sequences: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Stands where there is no policy."""
    raise ValueError("log_probs of the scoring context must be given to a scorer that evaluates sequences, got none")


@dataclass(frozen=True, eq=False)
class ScoringContext:
    """What a scorer may use beside the batch.

    Attributes:
        generator: the only source of randomness, seeded for the iteration.
        trajectories: the records that the batch is made of, a row each.
        tokenizer: of the policy.
        log_probs: evaluates other sequences under the current policy, at the temperature of sampling. All processes
            call it at the same time and equally often, also one that has no sequence; the first token of a sequence has
            no log-prob.
    """

    generator: torch.Generator
    trajectories: Sequence[Trajectory] = ()
    tokenizer: Any = None
    log_probs: LogProbs = no_policy

    def tokens(self, row: int) -> list[str]:
        """The text of every position of a row, ``T`` strings: of prompt, response, tool output; empty on padding.

        A character that several tokens share is the replacement character in each of them.

        Args:
            row: of the batch.

        Raises:
            ValueError: if the context was made without trajectories or tokenizer.
        """
        trajectories = self.records()
        decode = self._known(self.tokenizer, "tokenizer").decode
        texts = [decode([token_id]) for token_id in trajectories[row].token_ids.tolist()]
        return texts + [""] * (max(map(len, trajectories)) - len(texts))

    def encode(self, text: str) -> Tensor:
        """``[N]`` int64 tokens of a text that stands in the middle of a sequence.

        Raises:
            ValueError: if the context was made without a tokenizer.
        """
        encode = self._known(self.tokenizer, "tokenizer").encode
        return torch.tensor(encode(text, add_special_tokens=False), dtype=torch.int64)

    def records(self) -> Sequence[Trajectory]:
        """The trajectories.

        Raises:
            ValueError: if the context was made without them.
        """
        return self._known(self.trajectories or None, "trajectories")

    @staticmethod
    def _known(value: Known | None, name: str) -> Known:
        if value is None:
            raise ValueError(f"{name} of the scoring context must be given to a scorer that reads them, got none")
        return value


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each position is worth branching at.

    Attributes:
        values: ``[B, T]``, higher is better; ``-inf`` where no branch may start.
        preferred: ``[B, T]`` bool, positions that are chosen before any other; None prefers none.
        factors: ``[B, T]`` each, what the score was made of, by name; only their mean and spread over sampled tokens
            are logged.
        at_turns: the chosen positions begin turns: whatever token stands there, and whatever `rollout.branching.split`
            says, a branch leaves before it, right behind a tool result or the prompt.
    """

    values: Tensor
    preferred: Tensor | None = None
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    at_turns: bool = False


class Scorer(ABC):
    """Scores positions of finished trajectories for branching.

    Attributes:
        reads_log_probs: True if `old_log_probs` or `entropies` of the batch are read; False saves the pass that
            computes them.
        compares_policies: True if the score says how the current policy differs from the one that sampled.
    """

    # Not annotated: the command line reads a base's annotations in the module of the component, which may lack names.
    reads_log_probs = True
    compares_policies = False

    @abstractmethod
    def __call__(self, batch: TrajectoryBatch, context: ScoringContext) -> Scores:
        """Scores the sampled tokens of `batch`: possible parents, evaluated and rewarded.

        Args:
            batch: with `old_log_probs` and `entropies` of the policy at the moment of branching.
            context: randomness, the records, the tokenizer and the policy.
        """


SCORERS: Registry[Scorer] = Registry("scorer", group="appo.scorers")
