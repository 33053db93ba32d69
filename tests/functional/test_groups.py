import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import group_standardize


def test_standardizes_within_groups_by_hand():
    # group 7: mean 2, deviations -2, 0, 2, std sqrt(8/3); group 3: mean 0.5, deviations -0.5, 0.5, std 0.5
    x, group = torch.tensor([0.0, 0.0, 2.0, 1.0, 4.0]), torch.tensor([7, 3, 7, 3, 7])
    root = (8 / 3) ** 0.5
    torch.testing.assert_close(group_standardize(x, group), torch.tensor([-2 / root, -1.0, 0.0, 1.0, 2 / root]))


def test_the_divisor_is_an_option():
    x, group = torch.tensor([0.0, 2.0, 4.0]), torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(group_standardize(x, group, std="sample"), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(group_standardize(x, group, std="none"), torch.tensor([-2.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="std must be population, sample or none, got 'other'"):
        group_standardize(x, group, std="other")


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_a_group_of_one_and_a_group_of_equals_are_exactly_0(std):
    for size in range(1, 40):
        x, group = torch.full((size + 1,), 0.1), torch.tensor([5] + [1] * size)
        assert (group_standardize(x, group, std=std) == 0).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(-3, 3)), min_size=1, max_size=20))
def test_equals_the_definition(pairs):
    x = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    group = torch.tensor([key for _, key in pairs])
    ours = group_standardize(x, group)
    for key in group.unique():
        values = x[group == key]
        expected = (values - values.mean()) / (values.std(correction=0) + 1e-6)
        torch.testing.assert_close(ours[group == key], expected)
        torch.testing.assert_close(ours[group == key].sum(), torch.tensor(0.0, dtype=torch.float64), atol=1e-6, rtol=0)
