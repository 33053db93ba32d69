"""The order in which rows are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from appo.core.seeding import derive_seed


class LengthBucketSampler(Sampler[int]):
    """Shuffles rows anew every epoch, such that the rows of a batch have similar lengths.

    The rows of one optimizer step are drawn at random, and only then sorted into its batches: rows that are alike in
    length are alike in content too, and a policy that takes step after step on such rows learns far less.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch.
        batches_per_step: batches of an optimizer step; 1 leaves the rows in random order.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, batches_per_step: int = 1, seed: int = 0) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; the trainer calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "rows", self.epoch))
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        rows_per_step = self.batch_size * self.batches_per_step
        for start in range(0, len(order), rows_per_step):
            yield from sorted(order[start : start + rows_per_step], key=lambda row: self.lengths[row])
