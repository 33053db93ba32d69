import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import discounted_suffix_sum, future_likelihood_gain

few = settings(max_examples=25, deadline=None, derandomize=True)


def naive_suffix_sum(x, discount):
    """The definition as a sum over a square matrix, in float64."""
    position = torch.arange(x.shape[-1], dtype=torch.float64)
    distance = position.unsqueeze(0) - position.unsqueeze(-1)
    decay = torch.where(distance >= 0, discount ** distance.clamp(min=0), 0.0)
    return (decay * x.double().unsqueeze(-2)).sum(-1)


def test_discounts_the_future_by_hand():
    x = torch.tensor([[1.0, 2.0, 4.0]])
    # t=2: 4; t=1: 2 + 4/2 = 4; t=0: 1 + 4/2 = 3
    torch.testing.assert_close(discounted_suffix_sum(x, 0.5), torch.tensor([[3.0, 4.0, 4.0]]))


@few
@given(st.integers(1, 300), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_equals_the_definition_at_any_length(length, discount, seed):
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(seed))
    expected = naive_suffix_sum(x, discount)
    torch.testing.assert_close(discounted_suffix_sum(x.double(), discount), expected)
    # Sums of 300 values of size 1 may reach 50; rounding grows with them.
    torch.testing.assert_close(discounted_suffix_sum(x, discount), expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 256, 257])
def test_discount_0_is_the_value_and_discount_1_the_plain_sum(length):
    x = torch.randn(3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(discounted_suffix_sum(x, 0.0), x, atol=0.0, rtol=0.0)
    torch.testing.assert_close(discounted_suffix_sum(x, 1.0), x.flip(-1).cumsum(-1).flip(-1))


def test_a_strong_discount_over_a_long_sequence_stays_exact():
    x = torch.ones(1, 5000)
    # 1 / (1 - 0.5) = 2 away from the end; 0.5**5000 itself is 0 in floating point.
    sums = discounted_suffix_sum(x, 0.5)
    torch.testing.assert_close(sums[0, 0], torch.tensor(2.0))
    torch.testing.assert_close(sums[0, -3:], torch.tensor([1.75, 1.5, 1.0]))


def test_leaves_its_input_alone():
    x = torch.ones(1, 128)
    discounted_suffix_sum(x, 1.0)
    assert x.eq(1.0).all()


def test_gradient_of_the_suffix_sum():
    x = torch.randn(2, 131, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(2, 131, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((discounted_suffix_sum(x, 0.9) * weights).sum(), x)
    # What a position adds to every earlier sum is a discounted sum over the past.
    torch.testing.assert_close(gradient, naive_suffix_sum(weights.flip(-1), 0.9).flip(-1))


def test_likelihood_gain_by_hand():
    log_ratio = torch.tensor([[0.02, -0.01, 0.05, 0.03]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    # exp of 0.09, 0.07, 0.08, 0.03
    expected = torch.tensor([[1.094174, 1.072508, 1.083287, 1.030455]])
    torch.testing.assert_close(future_likelihood_gain(log_ratio, mask, 1.0, 0.2), expected, atol=1e-6, rtol=0.0)


def test_unsampled_tokens_add_nothing_but_take_a_step_of_the_discount():
    log_ratio = torch.tensor([[0.0, float("nan"), 0.08]])
    mask = torch.tensor([[True, False, True]])
    gain = future_likelihood_gain(log_ratio, mask, 0.5, 0.0)
    torch.testing.assert_close(gain, torch.tensor([[0.02, 0.04, 0.08]]).exp())


def test_gain_is_clipped_on_both_sides_and_bounded_without_a_clip():
    log_ratio, mask = torch.tensor([[100.0], [-100.0]]), torch.ones(2, 1, dtype=torch.bool)
    torch.testing.assert_close(future_likelihood_gain(log_ratio, mask, 1.0, 0.2), torch.tensor([[1.2], [0.8]]))
    torch.testing.assert_close(future_likelihood_gain(log_ratio, mask, 1.0, 0.0), torch.tensor([[20.0], [-20.0]]).exp())


def test_a_gain_that_may_only_rise_is_clipped_at_1():
    log_ratio, mask = torch.tensor([[0.1], [-0.1], [3.0]]), torch.ones(3, 1, dtype=torch.bool)
    gain = future_likelihood_gain(log_ratio, mask, 1.0, 0.2, high_only=True)
    torch.testing.assert_close(gain, torch.tensor([[1.105171], [1.0], [1.2]]))


def test_an_unchanged_policy_has_a_gain_of_exactly_1():
    gain = future_likelihood_gain(torch.zeros(2, 200), torch.ones(2, 200, dtype=torch.bool), 0.97, 0.2)
    assert (gain == 1.0).all()
