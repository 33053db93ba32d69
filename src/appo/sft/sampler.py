"""Which rows an optimizer step draws, and which of them go through the model together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DistributedSampler

from appo.core.prefix_tree import PrefixTree
from appo.core.seeding import derive_seed


@dataclass(frozen=True)
class Pack:
    """Rows that go through the model together.

    Attributes:
        rows: their numbers.
        step: the numbers of all rows of the optimizer step, on every device; empty for rows that count nothing.
    """

    rows: tuple[int, ...]
    step: tuple[int, ...]


class PackSampler(DistributedSampler[Pack]):
    """Draws the rows of each optimizer step at random, anew every epoch, and packs them.

    The packs of a step have about the same number of distinct tokens: what rows begin with alike counts once in a pack,
    and such rows are packed together. Rows are drawn before they are packed: those that are alike are alike in content
    too, and a policy that takes step after step on such rows learns far less. At one moment, devices have packs of
    about the same size.

    Args:
        token_ids: of each row.
        batch_size: rows of a pack, on average.
        batches_per_step: packs of an optimizer step on each device.
        num_replicas: devices.
        rank: number of this one.
        seed: of the order.
    """

    def __init__(
        self,
        token_ids: Sequence[Sequence[int]],
        batch_size: int,
        batches_per_step: int = 1,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(token_ids, num_replicas, rank, shuffle=False, seed=seed)  # type: ignore[arg-type]
        self.token_ids = token_ids
        self.rows_per_moment = batch_size * num_replicas
        self.rows_per_step = self.rows_per_moment * batches_per_step

    def __len__(self) -> int:
        return sum(map(self._num_moments, self._sizes()))

    def __iter__(self) -> Iterator[Pack]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "rows", self.epoch))
        order = torch.randperm(len(self.token_ids), generator=generator).tolist()
        for start in range(0, len(order), self.rows_per_step):
            step = order[start : start + self.rows_per_step]
            num_packs = self._num_moments(len(step)) * self.num_replicas
            packs = [Pack(tuple(step[i] for i in pack), tuple(step)) for pack in self._packs(step, num_packs)]
            # The last rows may be fewer than devices, which all must take part.
            packs += [Pack(packs[-1].rows, ())] * (num_packs - len(packs))
            yield from packs[self.rank :: self.num_replicas]

    def _sizes(self) -> Iterator[int]:
        for start in range(0, len(self.token_ids), self.rows_per_step):
            yield min(self.rows_per_step, len(self.token_ids) - start)

    def _num_moments(self, num_rows: int) -> int:
        return math.ceil(num_rows / self.rows_per_moment)

    def _packs(self, step: Sequence[int], num_packs: int) -> list[list[int]]:
        if num_packs == 1:
            return [list(range(len(step)))]
        rows = [torch.tensor(self.token_ids[row]) for row in step]
        lengths = torch.tensor([len(row) for row in rows])
        return balanced_packs(pad_sequence(rows, batch_first=True), lengths, num_packs)


def balanced_packs(token_ids: Tensor, lengths: Tensor, num_packs: int) -> list[list[int]]:
    """Partitions rows such that the largest part has as few distinct tokens as may be, about.

    Args:
        token_ids: ``[B, T]`` int64, right-padded.
        lengths: ``[B]`` int64, tokens before the padding.
        num_packs: parts; `B` if there are fewer rows.

    Returns:
        Row numbers of each part, the largest part first.
    """
    tree = PrefixTree.of(token_ids, lengths)
    least, most = max(int(lengths.max()), tree.num_tokens // num_packs), tree.num_row_tokens
    while least < most:
        middle = (least + most) // 2
        if len(tree.buckets(middle)) <= num_packs:
            most = middle
        else:
            least = middle + 1
    packs = tree.buckets(least)
    sizes = lengths.tolist()
    while len(packs) < min(num_packs, len(lengths)):
        largest = max((pack for pack in packs if len(pack) > 1), key=lambda pack: sum(sizes[row] for row in pack))
        packs.remove(largest)
        packs += [largest[::2], largest[1::2]]
    return sorted(packs, key=lambda pack: -sum(sizes[row] for row in pack))
