from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from appo.losses import LOSSES, Loss
from tests.properties import naive
from tests.properties.batches import HIDDEN, Step, few, orders, steps
from tests.properties.naive.losses import loss_of_step

# Weights of the aggregation are float32 whatever the losses are.
CLOSE = {"atol": 1e-6, "rtol": 1e-6}
STEP = 1e-5


def losses(name: str) -> st.SearchStrategy[Loss]:
    options = {**naive.COMMON, **naive.LOSSES[name].options}
    return st.fixed_dictionaries(options).map(lambda drawn: LOSSES[name](**naive.consistent(drawn)))


def expected(loss: Any, step: Step, log_probs: Tensor, entropies: Tensor) -> tuple[float, dict[str, float]]:
    """The definition; what the loss holds constant stays at the log-probs of the step."""
    definition = naive.LOSSES[type(loss).__name__]
    columns = log_probs.tolist(), entropies.tolist(), step.log_probs.tolist()
    return loss_of_step(loss, definition.terms, definition.keeps, step.batch, *columns)


def gradients(loss: Loss, step: Step) -> tuple[Tensor, Tensor]:
    leaves = step.leaves()
    loss(*leaves, step.batch)[0].backward()
    return tuple(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_every_option_has_a_definition(name):
    assert name in naive.LOSSES, f"{name} needs an entry in tests/properties/naive"
    assert {*naive.COMMON, *naive.LOSSES[name].options} == {field.name for field in fields(LOSSES[name])}


@pytest.mark.parametrize("name", LOSSES)
@few
@given(st.data())
def test_equals_the_definition(name, data):
    loss, step = data.draw(losses(name)), data.draw(steps())
    value, metrics = loss(step.log_probs, step.entropies, step.batch)
    expected_value, expected_metrics = expected(loss, step, step.log_probs, step.entropies)
    torch.testing.assert_close(value.item(), expected_value, **CLOSE)
    for key, metric in expected_metrics.items():
        torch.testing.assert_close(metrics[key].item(), metric, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", LOSSES)
@few
@given(st.data())
def test_gradients_are_those_of_the_definition_with_what_is_constant_held(name, data):
    loss, step = data.draw(losses(name)), data.draw(steps())
    by_log_probs, by_entropies = gradients(loss, step)
    for row, t in step.batch.response_mask.nonzero().tolist():
        for gradient, moved in ((by_log_probs, 0), (by_entropies, 1)):
            sides = []
            for shift in (STEP, -STEP):
                inputs = [step.log_probs.clone(), step.entropies.clone()]
                inputs[moved][row, t] += shift
                sides.append(expected(loss, step, *inputs)[0])
            torch.testing.assert_close(gradient[row, t].item(), (sides[0] - sides[1]) / (2 * STEP), **CLOSE)


@pytest.mark.parametrize("name", LOSSES)
@few
@given(st.data())
def test_rows_permuted_are_gradients_permuted(name, data):
    loss, step = data.draw(losses(name)), data.draw(steps())
    order = data.draw(orders(step.batch))
    columns = {f.name: value for f in fields(step.batch) if isinstance(value := getattr(step.batch, f.name), Tensor)}
    batch = replace(step.batch, **{key: value[order] for key, value in columns.items()})
    moved = Step(step.log_probs[order], step.entropies[order], batch)
    torch.testing.assert_close(loss(*moved.leaves(), batch), loss(*step.leaves(), step.batch))
    for gradient, same in zip(gradients(loss, step), gradients(loss, moved), strict=True):
        torch.testing.assert_close(same, gradient[order])


@pytest.mark.parametrize("name", LOSSES)
@few
@given(st.data())
def test_nothing_leaks_from_behind_the_mask(name, data):
    loss, step = data.draw(losses(name)), data.draw(steps())
    mask = step.batch.response_mask
    columns = ("behavior_log_probs", "old_log_probs", "advantages", "ref_log_probs")
    clean, clean_gradients = loss(step.log_probs, step.entropies, step.batch), gradients(loss, step)
    for value in HIDDEN:
        dirty = Step(
            step.log_probs.where(mask, value),
            step.entropies.where(mask, value),
            replace(step.batch, **{name: getattr(step.batch, name).where(mask, value) for name in columns}),
        )
        same = loss(dirty.log_probs, dirty.entropies, dirty.batch)
        torch.testing.assert_close(same, clean, rtol=0.0, atol=0.0)
        assert all(metric.isfinite() for metric in same[1].values())
        for gradient, same_gradient in zip(clean_gradients, gradients(loss, dirty), strict=True):
            assert not same_gradient[~mask].any()
            torch.testing.assert_close(same_gradient, gradient, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", LOSSES)
@few
@given(st.data())
def test_advantages_of_0_leave_the_penalties_alone(name, data):
    loss, step = data.draw(losses(name)), data.draw(steps())
    batch = replace(step.batch, advantages=torch.zeros_like(step.batch.advantages))
    free = replace(loss, kl_coef=0.0, entropy_coef=0.0)
    assert free(step.log_probs, step.entropies, batch)[0] == 0
    assert not any(gradient.any() for gradient in gradients(free, replace(step, batch=batch)))
