from dataclasses import fields, replace

import pytest
import torch

from appo.advantages import ADVANTAGES
from appo.core.batch import NO_PARENT
from tests.properties import naive
from tests.scorers.contexts import estimated


@pytest.mark.parametrize("name", ADVANTAGES)
def test_only_sampled_tokens_have_an_advantage_of_roots_and_branches_alike(name, batch):
    estimator = ADVANTAGES[name]()
    advantages = estimated(estimator, batch)
    assert advantages.shape == batch.token_ids.shape
    assert advantages.isfinite().all()
    assert (advantages[~batch.response_mask] == 0).all()
    assert advantages[batch.is_branch].any()
    assert advantages[~batch.is_branch].any()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_rows_do_not_depend_on_their_order(name, batch):
    rows = torch.tensor([3, 1, 5, 0, 4, 2])
    new_row = torch.empty(6, dtype=torch.int64).index_put((rows,), torch.arange(6))
    moved = {f.name: getattr(batch, f.name)[rows] for f in fields(batch) if getattr(batch, f.name) is not None}
    moved["parent"] = torch.where(moved["parent"] == NO_PARENT, NO_PARENT, new_row[moved["parent"]])
    estimator = ADVANTAGES[name]()
    torch.testing.assert_close(estimated(estimator, replace(batch, **moved)), estimated(estimator, batch)[rows])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_log_probs_and_what_stands_behind_the_mask_do_not_matter(name, batch):
    nan = torch.full(batch.token_ids.shape, float("nan"))
    estimator = ADVANTAGES[name]()
    entropies = batch.entropies.where(batch.response_mask, nan)
    dirty = replace(batch, old_log_probs=nan, behavior_log_probs=nan, entropies=entropies)
    torch.testing.assert_close(estimated(estimator, dirty), estimated(estimator, batch))


@pytest.mark.parametrize("name", naive.FLAT_IS_ZERO)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.1])
def test_equal_rewards_give_exactly_nothing_to_train_on(name, reward, batch):
    estimator = ADVANTAGES[name](**naive.ADVANTAGES[name].flat_is_zero)
    assert not estimated(estimator, replace(batch, rewards=torch.full((6,), reward))).any()
