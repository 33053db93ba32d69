"""What is trained of a tree, and with what advantage, against a walk from each row to its root."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.collate import make_batch
from appo.core.context import BatchContext
from appo.losses import ClippedLoss
from appo.rollouts.credit import TrainOn, credited, trained_tokens
from tests.properties.batches import few, trajectory_batches
from tests.scorers.contexts import context_of

KINDS: tuple[TrainOn, ...] = ("roots", "suffixes", "both", "trajectories")


def owner(batch: TrajectoryBatch, row: int, t: int) -> int:
    """The row that a token was sampled for."""
    while batch.parent[row] >= 0 and t <= batch.branch_position[row]:
        row = int(batch.parent[row])
    return row


def is_trained(batch: TrajectoryBatch, train_on: TrainOn, row: int, t: int) -> bool:
    if not batch.response_mask[row, t]:
        return False
    is_branch, is_own = batch.parent[row] >= 0, owner(batch, row, t) == row
    left_before = any(batch.parent[other] == row and batch.branch_position[other] < t for other in range(len(batch)))
    return {
        "roots": not is_branch,
        "suffixes": is_own and bool(is_branch or left_before),
        "both": is_own,
        "trajectories": True,
    }[train_on]


def by_row(batch: TrajectoryBatch, context: BatchContext) -> Tensor:
    """An estimate that differs from row to row: its reward and its length."""
    values = batch.rewards + batch.lengths.to(batch.rewards) - 4.0
    return values.unsqueeze(-1).where(batch.response_mask, 0.0)


@pytest.mark.parametrize("train_on", KINDS)
@few
@given(st.data())
def test_a_token_of_a_tree_is_trained_once_with_the_mean_of_those_that_share_it(train_on, data):
    batch = data.draw(trajectory_batches())
    has_branch = torch.isin(torch.arange(len(batch)), batch.parent)
    counts = has_branch | (torch.tensor([data.draw(st.booleans()) for _ in range(len(batch))]))
    result = credited(batch, context_of(batch), by_row, train_on, counts)
    assert result.advantages is not None
    for row in range(len(batch)):
        for t in range(batch.token_ids.shape[1]):
            expected = bool(counts[row]) and is_trained(batch, train_on, row, t)
            assert bool(result.trained[row, t]) == expected
            if not expected:
                assert result.advantages[row, t] == 0.0
                continue
            sharers = [row]
            if train_on in ("suffixes", "both"):
                sharers = [
                    other
                    for other in range(len(batch))
                    if counts[other] and batch.response_mask[other, t] and owner(batch, other, t) == row
                ]
            mean = sum(float(batch.rewards[other] + batch.lengths[other] - 4.0) for other in sharers) / len(sharers)
            torch.testing.assert_close(float(result.advantages[row, t]), mean)


@few
@given(st.data())
def test_a_tree_has_the_gradient_of_the_flat_sum(data):
    """Each row trained whole, a token of it weighted by one over the number of rows that share it, is the tree."""
    batch = data.draw(trajectory_batches())
    counts = torch.ones(len(batch), dtype=torch.bool)
    length = batch.token_ids.shape[1]
    owners = torch.tensor([[owner(batch, row, t) for t in range(length)] for row in range(len(batch))])
    # A token has one log-prob, whichever row it stands in.
    leaf = (batch.old_log_probs - 0.05 * batch.entropies).requires_grad_()  # within the clip
    log_probs = leaf.gather(0, owners)
    loss = ClippedLoss(aggregation="sequence-sum", behavior_correction="off", rows="all")
    tree = credited(batch, context_of(batch), by_row, "both", counts)
    (gradient,) = torch.autograd.grad(loss(log_probs, batch.entropies, tree)[0], leaf, retain_graph=True)
    flat = replace(batch, advantages=by_row(batch, context_of(batch)))
    share = torch.stack([(owners == owners[row]).where(batch.response_mask, False).sum(0) for row in range(len(batch))])
    weighted = replace(flat, advantages=flat.advantages / share.clamp(min=1))
    (expected,) = torch.autograd.grad(loss(log_probs, batch.entropies, weighted)[0], leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def _pair() -> TrajectoryBatch:
    """A root of three sampled tokens, and a branch that shares the first of them."""
    mask = torch.tensor([[False, True, True, True]] * 2)
    return make_batch(
        token_ids=torch.arange(8).reshape(2, 4),
        lengths=torch.tensor([4, 4]),
        response_mask=mask,
        rewards=torch.tensor([1.0, 0.0]),
        parent=torch.tensor([-1, 0]),
        branch_position=torch.tensor([-1, 1]),
    )


def test_rows_that_do_not_count_are_kept_from_the_estimator():
    seen = []

    def estimate(batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        seen.append(batch.rewards.tolist())
        assert len(context.records()) == len(batch)
        assert [record.token_ids.tolist() for record in context.records()] == batch.token_ids.tolist()
        return by_row(batch, context)

    batch = _pair()
    result = credited(batch, context_of(batch), estimate, "both", torch.tensor([True, False]))
    assert seen == [[1.0]]
    assert result.trained.any(-1).tolist() == [True, False]
    # Each process calls its estimator once, also where nothing counts.
    nothing = credited(batch, context_of(batch), estimate, "both", torch.tensor([False, False]))
    assert len(seen) == 2
    assert not nothing.trained.any()
    assert not nothing.advantages.any()


def test_where_nothing_counts_estimators_are_told_so():
    seen = []

    def estimate(batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        seen.append(batch.trained.any(-1).tolist())
        return by_row(batch, context)

    batch = _pair()
    for counts in ([True, True], [False, True], [False, False]):
        credited(batch, context_of(batch), estimate, "both", torch.tensor(counts))
    assert seen == [[True, True], [True], [False, False]]


def test_the_suffixes_of_a_root_begin_at_its_first_branch_point():
    assert trained_tokens(_pair(), "suffixes").tolist() == [[False, False, True, True], [False, False, True, True]]
