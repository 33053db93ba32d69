import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import masked_mean, masked_standardize, masked_std


def test_mean_and_deviation_by_hand():
    x, mask = torch.tensor([[1.0, 5.0, 100.0]]), torch.tensor([[True, True, False]])
    assert masked_mean(x, mask).tolist() == [3.0]
    assert masked_std(x, mask).tolist() == [2.0]
    torch.testing.assert_close(masked_standardize(x, mask), torch.tensor([[-1.0, 1.0, 0.0]]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6), min_size=1, max_size=4), st.data())
def test_equals_the_definition(rows, data):
    x = torch.tensor(rows, dtype=torch.float64)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=x.numel(), max_size=x.numel()))).view(x.shape)
    ours = masked_standardize(x, mask)
    for row in range(len(x)):
        values = x[row][mask[row]]
        if len(values):
            expected = (values - values.mean()) / (values.std(correction=0) + 1e-6)
            torch.testing.assert_close(ours[row][mask[row]], expected)
    assert (ours[~mask] == 0).all()


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 1e30])
def test_masked_values_cannot_leak(hidden):
    mask = torch.tensor([[True, True, False], [False, False, False]])
    clean = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    dirty = clean.where(mask, hidden)
    torch.testing.assert_close(masked_standardize(dirty, mask), masked_standardize(clean, mask))
    torch.testing.assert_close(masked_mean(dirty, mask), torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(masked_std(dirty, mask), torch.tensor([0.5, 0.0]))


def test_masked_values_cannot_leak_into_the_gradient():
    mask = torch.tensor([[True, True, False]])
    x = torch.tensor([[1.0, 3.0, float("nan")]], requires_grad=True)
    (masked_standardize(x, mask) * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, 2] == 0


@pytest.mark.parametrize("value", [0.1, 0.8, 1.2])
def test_equal_values_are_exactly_0(value):
    for length in range(1, 70):
        x, mask = torch.full((1, length), value), torch.ones(1, length, dtype=torch.bool)
        assert (masked_standardize(x, mask) == 0).all()
        assert (masked_std(x, mask) == 0).all()
