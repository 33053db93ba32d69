import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import (
    clip_events,
    dual_clip_surrogate,
    future_likelihood_weight,
    rows_near_behavior,
    rows_within_dual_clip,
    truncated_importance_weight,
)

CLIPS = 0.2, 0.28, 3.0
RELEASED = {"half_life": 64.0, "clip": 0.2, "max_ratio": 3.0, "safety_threshold": 6.0}


def as_log(*ratios):
    return torch.tensor([ratios]).log()


def test_surrogate_by_hand():
    log_ratio = as_log(1.1, 2.0, 2.0, 0.5, 5.0)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, -2.0]])
    # inside: -1.1; above the upper bound: -1.28; rising with A < 0: 2; below the lower bound: 0.8; dual clip: 2 * 3
    expected = torch.tensor([[-1.1, -1.28, 2.0, 0.8, 6.0]])
    torch.testing.assert_close(dual_clip_surrogate(log_ratio, advantages, *CLIPS), expected)
    events = clip_events(log_ratio, advantages, *CLIPS)
    assert events.high.tolist() == [[False, True, False, False, False]]
    assert events.low.tolist() == [[False, False, False, True, False]]
    assert events.dual.tolist() == [[False, False, False, False, True]]


def test_without_a_dual_clip_a_negative_advantage_is_unbounded():
    log_ratio, advantages = as_log(50.0), torch.tensor([[-2.0]])
    torch.testing.assert_close(dual_clip_surrogate(log_ratio, advantages, 0.2, 0.2), torch.tensor([[100.0]]))
    assert not clip_events(log_ratio, advantages, 0.2, 0.2).dual.any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(-4, 4), st.floats(-3, 3))
def test_surrogate_equals_the_definition_and_events_say_where_it_is_flat(log_ratio, advantage):
    x = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[advantage]], dtype=torch.float64)
    loss = dual_clip_surrogate(x, a, *CLIPS)
    r = math.exp(log_ratio)
    expected = max(-advantage * r, -advantage * min(max(r, 0.8), 1.28))
    expected = min(expected, -advantage * 3.0) if advantage < 0 else expected
    torch.testing.assert_close(loss.item(), expected)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    is_clipped = any(event.item() for event in clip_events(x, a, *CLIPS))
    torch.testing.assert_close(gradient.item(), 0.0 if is_clipped else -advantage * r)


def test_extreme_ratios_stay_finite_in_value_and_gradient():
    x = torch.tensor([[500.0, -500.0, 500.0]], requires_grad=True)
    dual_clip_surrogate(x, torch.tensor([[1.0, -1.0, -1.0]]), 0.2, 0.2).sum().backward()
    assert x.grad.isfinite().all()


def test_future_weight_by_hand():
    # The released example: log-ratios 0.1, -0.2, tool output, 1.2 (above ln 3 = 1.0986, takes no part), 0.05.
    log_ratio = torch.tensor([[0.1, -0.2, float("nan"), 1.2, 0.05]])
    mask = torch.tensor([[True, True, False, True, True]])
    advantages = torch.zeros(1, 5)
    symmetric = future_likelihood_weight(log_ratio, advantages, mask, high_only=False, **RELEASED)
    expected = torch.tensor([[0.951262, 0.859333, 1.050145, 1.050705, 1.051271]])
    torch.testing.assert_close(symmetric, expected, atol=1e-6, rtol=0.0)
    raised = future_likelihood_weight(log_ratio, advantages, mask, high_only=True, **RELEASED)
    torch.testing.assert_close(raised, expected.clamp(min=1.0), atol=1e-6, rtol=0.0)


def test_future_weight_is_clipped_or_bounded_by_10():
    log_ratio, mask = torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    options = {"half_life": 64.0, "high_only": False}
    clipped = future_likelihood_weight(log_ratio, torch.zeros(2, 2), mask, clip=0.2, **options)
    torch.testing.assert_close(clipped[:, 0], torch.tensor([1.2, 0.8]))
    unclipped = future_likelihood_weight(log_ratio, torch.zeros(2, 2), mask, clip=0.0, **options)
    torch.testing.assert_close(unclipped[:, 0], torch.tensor([10.0, math.exp(-3.0)]))


def test_the_safety_rule_holds_back_negative_advantages_of_runaway_tokens():
    log_ratio = as_log(1.5, 1.5, 1.5)
    mask, advantages = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[-1.0, 1.0, -1.0]])
    weight = future_likelihood_weight(log_ratio, advantages, mask, half_life=64.0, clip=0.2, safety_threshold=1.4)
    # exp of F is above 1.2 everywhere; the two negative ones come down to 1
    torch.testing.assert_close(weight, torch.tensor([[1.0, 1.2, 1.0]]))
    off = future_likelihood_weight(log_ratio, advantages, mask, half_life=64.0, clip=0.2)
    torch.testing.assert_close(off, torch.full((1, 3), 1.2))


def test_no_gradient_flows_through_the_future_weight():
    log_ratio = torch.zeros(1, 3, requires_grad=True)
    weight = future_likelihood_weight(
        log_ratio, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), half_life=2.0, clip=0.2
    )
    assert not weight.requires_grad


@pytest.mark.parametrize("half_life", [1.0, 64.0])
def test_half_life_is_where_a_log_ratio_counts_half(half_life):
    length = int(half_life) + 1
    log_ratio = torch.zeros(1, length)
    log_ratio[0, -1] = 0.1
    mask = torch.ones(1, length, dtype=torch.bool)
    weight = future_likelihood_weight(log_ratio, torch.zeros(1, length), mask, half_life=half_life, clip=0.9)
    torch.testing.assert_close(weight[0, 0].log(), torch.tensor(0.05))


def test_rows_with_two_runaway_tokens_are_left_out():
    events = torch.tensor([[True, False, False], [True, False, True], [False, False, False]])
    assert rows_within_dual_clip(events).tolist() == [True, False, True]


def test_rows_near_behavior_by_hand():
    # Geometric means of the ratios: (2 * 2) ** (1/2) = 2, (4 * 1/4) ** (1/2) = 1, (1/3) ** 1; the rest is not trained.
    old = torch.stack([as_log(0.4, 0.4, 0.9)[0], as_log(0.8, 0.1, 0.9)[0], as_log(0.1, 0.9, 0.9)[0]])
    behavior = torch.stack([as_log(0.2, 0.2, 0.1)[0], as_log(0.2, 0.4, 0.1)[0], as_log(0.3, 0.1, 0.1)[0]])
    behavior[:, 2] = float("nan")
    mask = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    assert rows_near_behavior(old, behavior, mask, cap=2.1).tolist() == [True, True, False]
    assert rows_near_behavior(old, behavior, mask, cap=1.9).tolist() == [False, True, False]


def test_truncated_weight_by_hand():
    old, behavior = as_log(0.5, 0.9, 0.2, 0.3), as_log(0.5, 0.3, 0.4, 0.3)
    old[0, 3] = float("nan")
    weight = truncated_importance_weight(old, behavior, torch.tensor([[True, True, True, False]]), cap=2.0)
    # 0.5 / 0.5; 0.9 / 0.3 = 3 is cut to 2; 0.2 / 0.4; not trained
    torch.testing.assert_close(weight, torch.tensor([[1.0, 2.0, 0.5, 1.0]]))
