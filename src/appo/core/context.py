"""What is known beside a batch of trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from appo.core.trajectory import Trajectory

Known = TypeVar("Known")

LogProbs = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""Log-probs of token sequences under the current policy: of ``[N_i]`` int64 sequences and ``[N_i]`` bool masks,
``[M_i]`` of the `M_i` tokens under each mask, in their order."""


def _no_policy(sequences: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Stands where there is no policy."""
    raise ValueError("log_probs of the batch context must be given to what evaluates sequences, got none")


@dataclass(frozen=True, eq=False)
class BatchContext:
    """What a scorer or an advantage estimator may use beside the batch.

    Attributes:
        generator: the only source of randomness, seeded for the iteration and, of a scorer, for the prompt.
        trajectories: the records that the batch is made of, a row each.
        tokenizer: of the policy.
        log_probs: evaluates other sequences under the current policy, at the temperature of sampling. All processes of
            a sharded policy call it at the same time and equally often, also one that has no sequence; the first token
            of a sequence has no log-prob.
    """

    generator: torch.Generator
    trajectories: Sequence[Trajectory] = ()
    tokenizer: Any = None
    log_probs: LogProbs = _no_policy

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

    def select(self, rows: Tensor) -> BatchContext:
        """That of some rows of the batch, ``[N]`` int64."""
        return replace(self, trajectories=[self.trajectories[row] for row in rows.tolist()])

    @staticmethod
    def _known(value: Known | None, name: str) -> Known:
        if value is None:
            raise ValueError(f"{name} of the batch context must be given to what reads them, got none")
        return value
