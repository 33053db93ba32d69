"""How well one order of things agrees with another."""

from __future__ import annotations

from torch import Tensor


def average_ranks(x: Tensor) -> Tensor:
    """Ranks from 1, the smallest, to `N`; equal values share the mean of theirs.

    Args:
        x: ``[N]`` values, ``-inf`` among them or not; no NaN.

    Returns:
        ``[N]`` float64.
    """
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts.double() - 1.0) / 2.0
    return ranks[inverse]


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's coefficient: the correlation of the average ranks.

    Args:
        x: ``[N]`` values, as `average_ranks` takes them.
        y: ``[N]`` values.

    Returns:
        Scalar in [-1, 1], float64; NaN where all values of `x` or all of `y` are equal.
    """
    ranks = [average_ranks(values) for values in (x, y)]
    a, b = (values - values.mean() for values in ranks)
    return (a @ b) / (a.square().sum() * b.square().sum()).sqrt()


def top_shares(x: Tensor, num: int) -> Tensor:
    """How surely each value is among the `num` largest when ties are broken by chance.

    Args:
        x: ``[N]`` values, as `average_ranks` takes them.
        num: in [0, N].

    Returns:
        ``[N]`` float64 in [0, 1], `num` in total.
    """
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    larger = len(x) - counts.cumsum(0)
    shares: Tensor = ((num - larger).clamp(min=0).double() / counts).clamp(max=1.0)
    return shares[inverse]


def top_precision(x: Tensor, y: Tensor, num: int) -> Tensor:
    """Expected share of the `num` largest of `x` that are among the `num` largest of `y`, ties broken by chance.

    Args:
        x: ``[N]`` values, as `average_ranks` takes them.
        y: ``[N]`` values.
        num: in [1, N].

    Returns:
        Scalar in [0, 1], float64.
    """
    return top_shares(x, num) @ top_shares(y, num) / num
