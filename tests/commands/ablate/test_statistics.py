from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from appo.commands.ablate.statistics import compare, estimate, holm, mean_curve, mean_heights, t_interval, t_test

# Hours of sleep that two drugs added in ten patients: the example of the paper that the t test comes from.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_the_interval_of_three_seeds_by_hand():
    # Mean 1, deviation sqrt((1 + 1 + 4) / 2), so the standard error is 1; the 0.975 quantile at 2 degrees is 4.302653.
    low, high = t_interval(np.array([0.0, 0.0, 3.0]))
    np.testing.assert_allclose((low, high), (1 - 4.302653, 1 + 4.302653), rtol=1e-6)
    # At 2 degrees the quantile of a share q on both sides is q * sqrt(2 / (1 - q**2)).
    low, high = t_interval(np.array([0.0, 0.0, 3.0]), level=0.6)
    np.testing.assert_allclose(high - 1, 0.6 * math.sqrt(2 / (1 - 0.6**2)))


def test_the_test_of_two_and_three_seeds_by_hand():
    # t = 1 and 2 degrees: p = 1 - t / sqrt(2 + t**2).
    assert t_test(np.array([0.0, 0.0, 3.0])) == pytest.approx(1 - 1 / math.sqrt(3))
    # t = 3 and 1 degree: p = 1 - 2 / pi * arctan(t).
    assert t_test(np.array([1.0, 2.0])) == pytest.approx(1 - 2 / math.pi * math.atan(3))


def test_the_paired_difference_is_that_of_students_own_example():
    _, second = compare({"1": dict(enumerate(DRUG_1)), "2": dict(enumerate(DRUG_2))}, {"1": {}, "2": {}})
    difference = second.difference
    assert difference is not None
    assert difference.mean == pytest.approx(1.58)
    # As R prints it: t.test(extra ~ group, data = sleep, paired = TRUE).
    np.testing.assert_allclose((difference.low, difference.high), (0.7001142, 2.4598858), atol=1e-7)
    assert difference.p == pytest.approx(0.002833, abs=5e-7)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 8])
def test_interval_and_test_are_those_of_scipy(num_seeds):
    a, b = np.random.default_rng(num_seeds).normal(size=(2, num_seeds))
    expected = scipy.stats.ttest_rel(a, b)
    found = estimate((a - b).tolist())
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose((found.low, found.high), tuple(expected.confidence_interval(0.95)))


def test_intervals_of_several_columns_are_those_of_each():
    values = np.random.default_rng(0).normal(size=(4, 3))
    low, high = t_interval(values)
    for column in range(3):
        np.testing.assert_allclose((low[column], high[column]), t_interval(values[:, column]))


def test_equal_seeds_leave_no_doubt():
    result = estimate([0.25, 0.25, 0.25])
    assert (result.mean, result.low, result.high, result.p) == (0.25, 0.25, 0.25, 0.0)
    assert estimate([0.0, 0.0]).p == 1.0


def test_a_single_seed_has_neither_interval_nor_test():
    result = estimate([0.4])
    assert result.mean == 0.4
    assert all(math.isnan(value) for value in (result.low, result.high, result.p))


def test_p_values_are_corrected_by_hand():
    # In order 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which may not be below 0.06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def refused_by_holm(p: list[float], alpha: float) -> set[int]:
    """The definition: go through the hypotheses from the smallest p on, and stop at the first that is not refused."""
    refused: set[int] = set()
    for rank, index in enumerate(np.argsort(p)):
        if p[index] > alpha / (len(p) - rank):
            break
        refused.add(int(index))
    return refused


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_corrected_p_values_decide_as_the_definition_does(alpha):
    for seed in range(50):
        p = (np.random.default_rng(seed).random(5) ** 3).tolist()
        assert {i for i, corrected in enumerate(holm(p)) if corrected <= alpha} == refused_by_holm(p, alpha)


def test_only_what_is_concluded_from_counts_as_a_comparison():
    seeds = range(5)
    values = {
        "a": dict.fromkeys(seeds, 0.0),
        "b": dict(enumerate([1.0, 2.0, 3.0, 4.0, 5.0])),
        "c": dict(enumerate([-1.0, 2.0, -3.0, 4.0, -5.0])),
        "few": {0: 1.0, 1: 1.1},
    }
    first, b, c, few = compare(values, {name: {} for name in values})
    assert b.difference is not None
    assert c.difference is not None
    assert (b.corrected_p, c.corrected_p) == (pytest.approx(2 * b.difference.p), pytest.approx(c.difference.p))
    assert math.isnan(first.corrected_p)
    assert math.isnan(few.corrected_p)


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
    assert (b.difference.mean, len(b.difference.values)) == (pytest.approx(0.2), 1)
    assert c.difference is None


def test_a_combination_without_a_finished_run_is_left_out():
    values: dict[str, dict[int, float]] = {"a": {}, "b": {0: 0.5}, "c": {}}
    (b,) = compare(values, values)
    assert (b.combination, b.difference) == ("b", None)


def test_areas_are_compared_like_values():
    values = {"a": {0: 0.1, 1: 0.5}, "b": {0: 0.2, 1: 0.6}}
    areas = {"a": {0: 0.3, 1: 0.4}, "b": {1: 0.6}}
    first, second = compare(values, areas)
    assert first.area is not None
    assert first.area.mean == pytest.approx(0.35)
    assert second.area_difference is not None
    assert (second.area_difference.mean, len(second.area_difference.values)) == (pytest.approx(0.2), 1)


def test_curves_are_averaged_where_all_seeds_have_tokens():
    curve = mean_curve([[(10, 0.0), (30, 1.0), (50, 1.0)], [(20, 0.5), (40, 0.5)]])
    # From 20, where the second begins, to 40, where it ends; the first lies at 1/2 after 20 tokens and at 1 after 40.
    np.testing.assert_array_equal(curve.tokens, [20, 30, 40])
    np.testing.assert_allclose(curve.mean, [0.5, 0.75, 0.75])
    np.testing.assert_allclose(curve.runs, [[0.5, 1.0, 1.0], [0.5, 0.5, 0.5]])
    low, high = t_interval(curve.runs)
    np.testing.assert_allclose((curve.low, curve.high), (low, high))


def test_the_curve_of_one_seed_is_the_run_itself():
    curve = mean_curve([[(10, 0.0), (30, 1.0)]])
    np.testing.assert_array_equal(curve.tokens, [10, 30])
    np.testing.assert_array_equal(curve.mean, [0, 1])
    assert np.isnan(curve.low).all()


def test_curves_without_common_tokens_have_no_mean():
    assert len(mean_curve([[(10, 0.0)], [(20, 1.0)]]).tokens) == 0


def test_the_area_is_the_mean_height_over_common_tokens_by_hand():
    runs = [[(10.0, 0.0), (30.0, 1.0), (50.0, 1.0)], [(20.0, 0.5), (40.0, 0.5)]]
    # From 20 to 40 the first rises from 1/2 to 1 in one half, and stays there in the other: (3/4 + 1) / 2.
    assert mean_heights(runs) == pytest.approx([0.875, 0.5])


def test_curves_that_meet_in_one_point_have_no_area():
    assert np.isnan(mean_heights([[(10.0, 0.0), (20.0, 1.0)], [(20.0, 1.0), (30.0, 1.0)]])).all()


def test_the_area_is_that_of_the_definition():
    """A sum of many thin rectangles."""
    rng = np.random.default_rng(1)
    runs = [list(zip(np.cumsum(rng.integers(1, 9, 12)), rng.random(12), strict=True)) for _ in range(3)]
    start, end = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
    middle = start + (np.arange(200_000) + 0.5) * (end - start) / 200_000
    expected = [np.interp(middle, *zip(*run, strict=True)).mean() for run in runs]
    np.testing.assert_allclose(mean_heights(runs), expected, atol=1e-5)
