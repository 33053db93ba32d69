"""The online rollout buffer: what a data loader reads while the rollouts are still being made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, cast

from torch.utils.data import IterableDataset

Item = TypeVar("Item")
_END = object()


class RolloutBuffer(IterableDataset[Item], Generic[Item]):
    """Batches of one epoch, each read once.

    The length is known beforehand, or Lightning prefetches, reads the buffer before it is filled, and an epoch trains
    on nothing. Batches may be computed while they are drawn: `fill` takes any iterable and reads it one item at a time.

    Args:
        num_batches: of every epoch.
    """

    def __init__(self, num_batches: int) -> None:
        if num_batches < 1:
            raise ValueError(f"num_batches must be positive, got {num_batches}")
        self.num_batches = num_batches
        self._batches: Iterable[Item] | None = None
        self._num_drawn = num_batches

    def fill(self, batches: Iterable[Item], num_drawn: int | None = None) -> None:
        """Hands in the batches of the next epoch; those of the last one that were not drawn are forgotten.

        Args:
            batches: read one at a time, and to their end along with the last one that is drawn.
            num_drawn: how many the epoch draws, and `batches` holds. None: all of `num_batches`.

        Raises:
            ValueError: if that is none, or more than there are.
        """
        if num_drawn is not None and not 0 < num_drawn <= self.num_batches:
            raise ValueError(f"num_drawn must lie in 1 .. {self.num_batches}, got {num_drawn}")
        self._batches, self._num_drawn = batches, num_drawn or self.num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Item]:
        # A generator: nothing is taken before the first batch is asked for, however early a loader opens the iterator.
        if self._batches is None:
            raise RuntimeError(
                "the rollout buffer was read before it was filled; are RolloutCallback, for training, and "
                "EvaluationCallback, for all else, among the callbacks?"
            )
        batches, self._batches = iter(self._batches), None
        for number in range(self._num_drawn):
            batch = next(batches, _END)
            # A loader of known length never asks for more, so the source is run to its end along with its last batch.
            is_last = number + 1 == self._num_drawn
            if batch is _END:
                raise RuntimeError(f"an epoch must hold {self._num_drawn} batches, got {number}")
            if is_last and next(batches, _END) is not _END:
                raise RuntimeError(f"an epoch must hold {self._num_drawn} batches, got more")
            yield cast(Item, batch)
