from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from appo.advantages import ADVANTAGES, AdvantageEstimator
from appo.core.batch import NO_PARENT, TrajectoryBatch
from tests.properties import naive
from tests.properties.batches import HIDDEN, few, hidden_variants, orders, reordered, trajectory_batches
from tests.properties.naive.common import rows_of
from tests.scorers.contexts import estimated

WITHIN_PROMPTS = [name for name in ADVANTAGES if name in naive.ADVANTAGES and not naive.ADVANTAGES[name].across_prompts]
TO_LAST_BIT = {"rtol": 0.0, "atol": 0.0}


def estimators(name: str, **fixed: object) -> st.SearchStrategy[AdvantageEstimator]:
    options = st.fixed_dictionaries(naive.ADVANTAGES[name].options)
    return options.map(lambda drawn: ADVANTAGES[name](**{**drawn, **fixed}))


def without_branches(batch: TrajectoryBatch) -> TrajectoryBatch:
    """The same rows as initial trajectories."""
    none = torch.full_like(batch.parent, NO_PARENT)
    return replace(batch, parent=none, branch_position=none, branch_score=torch.zeros_like(batch.branch_score))


def sums_by_group(values: Tensor, group: Tensor) -> Tensor:
    keys, index = group.unique(return_inverse=True)
    return values.new_zeros(len(keys), values.shape[1]).index_add(0, index, values)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_estimator_and_every_option_has_a_definition(name):
    assert name in naive.ADVANTAGES, f"{name} needs an entry in tests/properties/naive"
    assert set(naive.ADVANTAGES[name].options) == {field.name for field in fields(ADVANTAGES[name])}


@pytest.mark.parametrize("name", ADVANTAGES)
@few
@given(st.data())
def test_equals_the_definition(name, data):
    estimator, batch = data.draw(estimators(name)), data.draw(trajectory_batches())
    expected = naive.ADVANTAGES[name].compute(estimator, rows_of(batch))
    torch.testing.assert_close(
        estimated(estimator, batch), torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=1e-8
    )


@pytest.mark.parametrize("name", naive.SUMS_TO_ZERO)
@few
@given(st.data())
def test_the_advantages_of_a_prompt_add_up_to_nothing(name, data):
    definition = naive.ADVANTAGES[name]
    estimator, batch = data.draw(estimators(name, **definition.sums_to_zero)), data.draw(trajectory_batches())
    if not definition.with_branches:
        batch = without_branches(batch)
    everywhere = replace(batch, response_mask=torch.ones_like(batch.response_mask))
    sums = sums_by_group(estimated(estimator, everywhere), batch.group)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("name", naive.FLAT_IS_ZERO)
@few
@given(st.data())
def test_equal_rewards_and_groups_of_one_give_exactly_nothing(name, data):
    options = naive.ADVANTAGES[name].flat_is_zero
    estimator, batch = data.draw(estimators(name, **options)), data.draw(trajectory_batches())
    equal = replace(batch, rewards=torch.full_like(batch.rewards, batch.rewards[0].item()))
    assert not estimated(estimator, equal).any()
    alone = replace(without_branches(batch), group=torch.arange(len(batch.group)))
    assert not estimated(estimator, alone).any()


@pytest.mark.parametrize("name", ADVANTAGES)
@few
@given(st.data())
def test_rows_permuted_are_advantages_permuted(name, data):
    estimator, batch = data.draw(estimators(name)), data.draw(trajectory_batches())
    order = data.draw(orders(batch))
    torch.testing.assert_close(estimated(estimator, reordered(batch, order)), estimated(estimator, batch)[order])


@pytest.mark.parametrize("name", ADVANTAGES)
@few
@given(st.data())
def test_the_numbers_of_groups_are_names(name, data):
    estimator, batch = data.draw(estimators(name)), data.draw(trajectory_batches())
    renamed = replace(batch, group=100 - 7 * batch.group)
    torch.testing.assert_close(estimated(estimator, renamed), estimated(estimator, batch))


@pytest.mark.parametrize("name", ADVANTAGES)
@few
@given(st.data())
def test_nothing_leaks_from_behind_the_mask(name, data):
    estimator, batch = data.draw(estimators(name)), data.draw(trajectory_batches())
    advantages = estimated(estimator, batch)
    for value, dirty in zip(HIDDEN, hidden_variants(batch), strict=True):
        if not estimator.reads_log_probs:
            # Nobody may have asked for them.
            unread = torch.full_like(batch.old_log_probs, value)
            dirty = replace(dirty, old_log_probs=unread, behavior_log_probs=unread)
        torch.testing.assert_close(estimated(estimator, dirty), advantages, **TO_LAST_BIT)


@pytest.mark.parametrize("name", WITHIN_PROMPTS)
@few
@given(st.data())
def test_rewards_of_one_prompt_do_not_act_on_another(name, data):
    estimator, batch = data.draw(estimators(name)), data.draw(trajectory_batches())
    first = batch.group == batch.group[0]
    rewards = batch.rewards.where(first, 9.0 - batch.rewards)
    torch.testing.assert_close(
        estimated(estimator, replace(batch, rewards=rewards))[first], estimated(estimator, batch)[first]
    )
