from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from appo.core.prefix_tree import PrefixTree
from appo.sft.sampler import PackSampler, balanced_packs


def rows(num, seed=0):
    """Of 20 to 300 tokens; half of them begin with the same 60."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(0, 50, (60,), generator=generator).tolist()
    lengths = torch.randint(20, 241, (num,), generator=generator).tolist()
    drawn = [torch.randint(50, 100, (length,), generator=generator).tolist() for length in lengths]
    return [[*shared * (number % 2), *row] for number, row in enumerate(drawn)]


def test_every_row_is_packed_once_an_epoch_and_steps_are_drawn_at_random():
    sampler = PackSampler(rows(50), batch_size=4, batches_per_step=3, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    # Four steps of 12 rows in three packs each, and one of two rows in one.
    assert len(first) == len(sampler) == 13
    assert sorted(row for pack in first for row in pack.rows) == list(range(50))
    for step in (first[start : start + 3] for start in range(0, 13, 3)):
        assert {pack.step for pack in step} == {step[0].step}
        assert sorted(row for pack in step for row in pack.rows) == sorted(step[0].step)
    sampler.set_epoch(1)
    assert {pack.step for pack in sampler}.isdisjoint(pack.step for pack in first)


@pytest.mark.parametrize("num_rows", [48, 50, 25])
def test_devices_share_the_packs_of_a_step(num_rows):
    every = rows(num_rows)
    samplers = [PackSampler(every, 2, 2, num_replicas=3, rank=rank, seed=1) for rank in range(3)]
    packs = [list(sampler) for sampler in samplers]
    assert {len(of_rank) for of_rank in packs} == {len(samplers[0])}
    counted = [row for of_rank in packs for pack in of_rank if pack.step for row in pack.rows]
    assert sorted(counted) == list(range(num_rows))
    for moment in zip(*packs, strict=True):
        assert len({pack.step for pack in moment if pack.step}) == 1


def test_packs_have_about_as_many_distinct_tokens_as_one_another():
    every = [torch.tensor(row) for row in rows(64)]
    lengths = torch.tensor([len(row) for row in every])
    token_ids = pad_sequence(every, batch_first=True)
    packs = balanced_packs(token_ids, lengths, 8)
    assert sorted(row for pack in packs for row in pack) == list(range(64))
    sizes = [PrefixTree.of(token_ids[pack], lengths[pack]).num_tokens for pack in packs]
    assert max(sizes) < 1.15 * sum(sizes) / 8
    # The rows that begin alike are together, and what they share stands in half of the packs at most.
    assert sum(sizes) <= PrefixTree.of(token_ids, lengths).num_tokens + 4 * 60
    assert sorted(map(len, balanced_packs(token_ids[:3], lengths[:3], 8))) == [1, 1, 1]
