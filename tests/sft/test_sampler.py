from __future__ import annotations

import torch

from appo.sft.sampler import LengthBucketSampler


def test_a_step_draws_rows_at_random_and_sorts_them_into_its_batches():
    lengths = [int(x) for x in torch.randint(1, 100, (50,), generator=torch.Generator().manual_seed(0))]
    sampler = LengthBucketSampler(lengths, batch_size=4, batches_per_step=3, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert first == list(sampler)
    for start in range(0, 50, 12):
        step = [lengths[row] for row in first[start : start + 12]]
        assert step == sorted(step)
    shuffled = list(LengthBucketSampler(lengths, batch_size=4, batches_per_step=1, seed=1))
    assert {*first[:12]} == {*shuffled[:12]}
    sampler.set_epoch(1)
    assert list(sampler) != first
