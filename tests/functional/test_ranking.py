from __future__ import annotations

from itertools import permutations

import pytest
import torch
from scipy.stats import rankdata, spearmanr

from appo.functional import average_ranks, rank_correlation, top_precision, top_shares

INF = float("inf")


def test_equal_values_share_the_mean_of_their_ranks():
    x = torch.tensor([3.0, -INF, 1.0, 3.0, -INF, 2.0])
    assert average_ranks(x).tolist() == [5.5, 1.5, 3.0, 5.5, 1.5, 4.0]


def test_ranks_and_their_correlation_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x, y = torch.randint(5, (2, 12), generator=generator).double()
        assert average_ranks(x).tolist() == pytest.approx(rankdata(x.numpy()))
        assert float(rank_correlation(x, y)) == pytest.approx(spearmanr(x.numpy(), y.numpy()).statistic)


def test_what_does_not_vary_has_no_correlation():
    assert rank_correlation(torch.ones(4), torch.arange(4.0)).isnan()


def test_shares_of_the_largest_by_hand():
    x = torch.tensor([5.0, 4.0, 4.0, 4.0, 1.0])
    # Two places are left for the three fours.
    assert top_shares(x, 3).tolist() == pytest.approx([1.0, 2 / 3, 2 / 3, 2 / 3, 0.0])
    assert top_shares(x, 0).tolist() == [0.0] * 5
    assert top_shares(x, 5).tolist() == [1.0] * 5


def test_the_precision_is_the_mean_over_all_ways_to_break_ties():
    x, y, num = [2.0, 1.0, 1.0, 0.0], [0.0, 3.0, 0.0, 0.0], 2
    tops = [[{*sorted(order, key=lambda i: -values[i])[:num]} for order in permutations(range(4))] for values in (x, y)]
    overlaps = [len(a & b) / num for a in tops[0] for b in tops[1]]
    expected = sum(overlaps) / len(overlaps)
    assert float(top_precision(torch.tensor(x), torch.tensor(y), num)) == pytest.approx(expected)
