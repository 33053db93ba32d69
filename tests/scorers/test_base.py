from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.functional import turn_starts
from appo.scorers import SCORERS
from tests.scorers.contexts import context_of
from tests.scorers.scored_batches import INF, built, context

RANDOM = {"BalancedEntropy", "RandomPosition", "ToolBoundary", "TreeUniform"}


def permuted(batch: TrajectoryBatch, rows: Tensor) -> TrajectoryBatch:
    return replace(
        batch, **{f.name: getattr(batch, f.name)[rows] for f in fields(batch) if getattr(batch, f.name) is not None}
    )


@pytest.mark.parametrize("name", SCORERS)
def test_only_sampled_tokens_may_branch(name, batch):
    scores = built(name)(batch, context_of(batch))
    assert scores.values.shape == batch.token_ids.shape
    assert (scores.values[~batch.response_mask] == -INF).all()
    sampled = scores.values[batch.response_mask]
    assert (sampled.isfinite() | (sampled == -INF)).all()
    if scores.at_turns:
        assert (scores.values[batch.response_mask & ~turn_starts(batch.response_mask)] == -INF).all()
    if scores.preferred is not None:
        assert scores.preferred.dtype == torch.bool
        assert not scores.preferred[~batch.response_mask].any()
    assert all(factor.shape == batch.token_ids.shape for factor in scores.factors.values())


@pytest.mark.parametrize("name", sorted(set(SCORERS) - RANDOM))
def test_rows_do_not_depend_on_their_order(name, batch):
    rows = torch.tensor([3, 1, 5, 0, 4, 2])
    scores, moved = (built(name)(b, context_of(b)) for b in (batch, permuted(batch, rows)))
    torch.testing.assert_close(moved.values, scores.values[rows])


@pytest.mark.parametrize("name", SCORERS)
def test_what_stands_behind_the_mask_does_not_leak(name, batch):
    hidden = ("behavior_log_probs", "old_log_probs", "entropies")
    dirty = {field: getattr(batch, field).where(batch.response_mask, float("nan")) for field in hidden}
    scores, same = (built(name)(b, context_of(b)) for b in (batch, replace(batch, **dirty)))
    torch.testing.assert_close(same.values, scores.values)


def test_a_context_without_records_or_policy_says_what_it_lacks():
    with pytest.raises(
        ValueError, match="trajectories of the batch context must be given to what reads them, got none"
    ):
        context().tokens(0)
    with pytest.raises(ValueError, match="log_probs of the batch context must be given"):
        context().log_probs([], [])
