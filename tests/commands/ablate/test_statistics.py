from __future__ import annotations

import math
from statistics import mean

import numpy as np
import pytest

from appo.commands.ablate.statistics import bootstrap_interval, compare, estimate, mean_curve


def test_the_interval_of_two_seeds_by_hand():
    # Means of two draws from {0, 1}: 0 with probability 1/4, 1/2 with 1/2, 1 with 1/4.
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    # The middle 40 % of them are all 1/2.
    assert bootstrap_interval(np.array([0.0, 1.0]), level=0.4) == (0.5, 0.5)


def test_the_interval_of_three_seeds_by_hand():
    # Means of three draws from {0, 0, 3}: 3 with probability 1/27 = 0.037, more than the 0.025 above the interval;
    # 0 with 8/27, more than the 0.025 below it.
    assert bootstrap_interval(np.array([0.0, 0.0, 3.0])) == (0.0, 3.0)
    # 3 lies above the middle 90 %, 2 (probability 6/27) does not.
    assert bootstrap_interval(np.array([0.0, 0.0, 3.0]), level=0.9) == (0.0, 2.0)


def test_equal_seeds_leave_no_doubt():
    result = estimate([0.25, 0.25, 0.25])
    assert (result.mean, result.low, result.high, result.num_seeds) == (0.25, 0.25, 0.25, 3)


def test_a_single_seed_has_no_interval():
    result = estimate([0.4])
    assert result.mean == 0.4
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def naive_interval(values: list[float], num_resamples: int, level: float, seed: int) -> tuple[float, float]:
    """The definition: draw, take the mean, sort, and read between the two nearest ranks."""
    rows = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    means = sorted(mean(values[i] for i in row) for row in rows)

    def quantile(share: float) -> float:
        rank = share * (len(means) - 1)
        below = int(rank)
        return means[below] + (rank - below) * (means[min(below + 1, len(means) - 1)] - means[below])

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@pytest.mark.parametrize("num_seeds", [2, 3, 7])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_that_of_the_definition(num_seeds, level):
    values = np.random.default_rng(num_seeds).normal(size=(num_seeds, 4))
    low, high = bootstrap_interval(values, num_resamples=301, level=level, seed=5)
    for column in range(4):
        expected = naive_interval(values[:, column].tolist(), 301, level, seed=5)
        np.testing.assert_allclose((low[column], high[column]), expected, rtol=1e-12)


def test_the_interval_is_the_same_every_time_and_depends_on_the_seed():
    values = np.random.default_rng(0).normal(size=5)
    assert bootstrap_interval(values, 100) == bootstrap_interval(values, 100)
    assert bootstrap_interval(values, 100) != bootstrap_interval(values, 100, seed=1)


def test_differences_are_paired_by_seed():
    values = {"a": {0: 0.1, 1: 0.5, 2: 0.9}, "b": {0: 0.2, 1: 0.6, 2: 1.0}}
    first, second = compare(values, values)
    assert first.difference is None
    assert second.difference is not None
    # The seeds are far apart, the combinations are not: 0.1 for every seed.
    assert second.difference.mean == pytest.approx(0.1)
    assert second.difference.low == pytest.approx(0.1)
    assert second.difference.high == pytest.approx(0.1)
    assert second.value.high - second.value.low > 0.5


def test_only_seeds_that_both_have_are_paired():
    values = {"a": {0: 0.1, 1: 0.5}, "b": {1: 0.7, 2: 0.0}, "c": {2: 0.3}}
    _, b, c = compare(values, values)
    assert b.value.mean == pytest.approx(0.35)
    assert b.difference is not None
    assert (b.difference.mean, b.difference.num_seeds) == (pytest.approx(0.2), 1)
    assert c.difference is None


def test_a_combination_without_a_finished_run_is_left_out():
    values: dict[str, dict[int, float]] = {"a": {}, "b": {0: 0.5}, "c": {}}
    (b,) = compare(values, values)
    assert (b.combination, b.difference) == ("b", None)


def test_tokens_are_averaged_over_seeds():
    (a,) = compare({"a": {0: 0.1, 1: 0.2}}, {"a": {0: 100.0, 1: 110.0}})
    assert a.tokens == 105


def test_curves_are_averaged_where_all_seeds_have_tokens():
    curve = mean_curve([[(10, 0.0), (30, 1.0), (50, 1.0)], [(20, 0.5), (40, 0.5)]])
    # From 20, where the second begins, to 40, where it ends; the first lies at 1/2 after 20 tokens and at 1 after 40.
    np.testing.assert_array_equal(curve.tokens, [20, 30, 40])
    np.testing.assert_allclose(curve.mean, [0.5, 0.75, 0.75])
    np.testing.assert_allclose(curve.low, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(curve.high, [0.5, 1.0, 1.0])


def test_the_curve_of_one_seed_is_the_run_itself():
    curve = mean_curve([[(10, 0.0), (30, 1.0)]])
    np.testing.assert_array_equal(curve.tokens, [10, 30])
    np.testing.assert_array_equal(curve.mean, [0, 1])
    assert np.isnan(curve.low).all()


def test_curves_without_common_tokens_have_no_mean():
    assert len(mean_curve([[(10, 0.0)], [(20, 1.0)]]).tokens) == 0
