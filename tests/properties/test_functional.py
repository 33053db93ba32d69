from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from appo.advantages import ADVANTAGES
from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.functional import (
    aggregation_weights,
    discounted_suffix_sum,
    future_likelihood_gain,
    future_likelihood_weight,
    group_standardize,
    kl_estimate,
    masked_standardize,
    prefix_credit,
    select_branch_points,
    sequence_log_ratio,
    shared_prefix_mean,
)
from appo.losses import LOSSES
from appo.scorers import SCORERS
from tests.properties.batches import HIDDEN, Step, few, steps, trajectory_batches
from tests.properties.naive import common
from tests.properties.naive.advantages import owner, sharing
from tests.properties.naive.losses import divergence
from tests.scorers.contexts import context_of, estimated
from tests.scorers.scored_batches import built

HUNDREDTHS = st.integers(-200, 200).map(lambda number: number / 100)
LONG = 300_000
"""Positions of a row whose square would not fit into any memory: 360 GB in float32."""
DISCOUNTS = st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@few
@given(st.integers(1, 400), DISCOUNTS, st.integers(0, 99))
def test_a_suffix_sum_is_its_value_plus_the_discounted_next_sum(length, discount, seed):
    x = random(2, length, seed=seed)
    sums = discounted_suffix_sum(x, discount)
    following = torch.nn.functional.pad(sums[:, 1:], (0, 1))
    torch.testing.assert_close(sums, x + discount * following)


@few
@given(steps(), DISCOUNTS, st.sampled_from([0.0, 0.2]))
def test_likelihood_gain_equals_its_definition_whatever_the_mask_hides(step, discount, clip):
    mask = step.batch.response_mask
    log_ratio = step.log_probs - step.batch.old_log_probs
    gain = future_likelihood_gain(log_ratio, mask, discount, clip)
    for row, of_row in enumerate(gain.tolist()):
        counted = {t: log_ratio[row, t].item() for t in range(len(of_row)) if mask[row, t]}
        expected = [common.likelihood_gain(counted, t, discount, clip) for t in range(len(of_row))]
        torch.testing.assert_close(of_row, expected)
    for value in HIDDEN:
        same = future_likelihood_gain(log_ratio.where(mask, value), mask, discount, clip)
        torch.testing.assert_close(same, gain, rtol=0.0, atol=0.0)


@few
@given(steps())
def test_the_future_weight_is_of_the_token_alone_or_of_all_that_follows_at_the_ends_of_the_half_life(step):
    mask = step.batch.response_mask
    log_ratio = (step.log_probs - step.batch.old_log_probs).where(mask, 0.0) / 10
    for half_life, summed in ((1e-9, log_ratio), (float("inf"), log_ratio.flip(-1).cumsum(-1).flip(-1))):
        weight = future_likelihood_weight(
            log_ratio, step.batch.advantages, mask, half_life=half_life, clip=0.0, high_only=False
        )
        torch.testing.assert_close(weight, summed.exp())


@few
@given(trajectory_batches())
def test_credit_of_branches_equals_its_definition_and_hidden_positions_of_roots_do_not_matter(batch):
    width = batch.token_ids.shape[1]
    rows = common.rows_of(batch)
    credit = prefix_credit(batch.rewards, batch.parent, batch.branch_position, width)
    for row in range(len(rows)):
        for t in range(width):
            own = owner(rows, row, t)
            others = [rows[j].reward for j in sharing(rows, row, t) if j != own]
            expected = sum(others) / len(others) if others else 0.0
            torch.testing.assert_close(credit[row, t].item(), expected)
    hidden = batch.rewards.where(batch.is_branch, float("nan"))
    position = batch.branch_position.where(batch.is_branch, -(10**9))
    torch.testing.assert_close(prefix_credit(hidden, batch.parent, position, width), credit, rtol=0.0, atol=0.0)


@few
@given(trajectory_batches())
def test_sharing_a_prefix_moves_advantages_and_adds_none(batch):
    width = batch.token_ids.shape[1]
    shared = shared_prefix_mean(batch.rewards, batch.parent, batch.branch_position, width)
    torch.testing.assert_close(shared.sum(0), batch.rewards.sum().expand(width))


@few
@given(steps(), st.sampled_from(["k1", "abs", "k2", "k3"]))
def test_divergences_equal_their_definitions_and_are_0_where_policies_agree(step, estimator):
    reference = step.batch.ref_log_probs
    estimates = kl_estimate(step.log_probs, reference, estimator)
    expected = [[divergence(estimator, value) for value in row] for row in (step.log_probs - reference).tolist()]
    torch.testing.assert_close(estimates, torch.tensor(expected, dtype=torch.float64))
    assert estimator == "k1" or (estimates >= 0).all()
    assert not kl_estimate(reference, reference, estimator).any()


@few
@given(steps())
def test_weights_of_means_add_up_to_1(step):
    mask = step.batch.response_mask
    for mode in ("token-mean", "sequence-mean"):
        weights = aggregation_weights(mask, mode)
        torch.testing.assert_close(weights.sum().item(), float(mask.any()), atol=1e-6, rtol=0.0)
        assert not weights[~mask].any()


@few
@given(steps())
def test_a_row_has_one_ratio_and_every_token_its_own_gradient(step):
    mask = step.batch.response_mask
    log_ratio = (step.log_probs - step.batch.old_log_probs).requires_grad_()
    of_sequence = sequence_log_ratio(log_ratio, mask)
    of_sequence.sum().backward()
    torch.testing.assert_close(log_ratio.grad, mask.double())
    for row in range(len(mask)):
        tokens = log_ratio[row, mask[row]].detach()
        torch.testing.assert_close(of_sequence[row, mask[row]].detach(), tokens.mean().expand(len(tokens)))


@few
@given(st.lists(st.tuples(HUNDREDTHS, st.integers(-2, 2)), min_size=1, max_size=12), HUNDREDTHS)
def test_what_is_standardized_within_groups_has_no_level_and_no_scale(pairs, level):
    x, group = torch.tensor([value for value, _ in pairs], dtype=torch.float64), torch.tensor([key for _, key in pairs])
    for std in ("population", "sample", "none"):
        z = group_standardize(x, group, std=std)
        torch.testing.assert_close(group_standardize(x + level, group, std=std), z, atol=1e-8, rtol=1e-8)
        scale = 3.0 if std == "none" else 1.0
        torch.testing.assert_close(group_standardize(3 * x, group, eps=3e-6, std=std), scale * z, atol=1e-8, rtol=1e-8)


@few
@given(steps())
def test_what_is_standardized_within_rows_has_no_level_and_no_scale(step):
    mask = step.batch.response_mask
    z = masked_standardize(step.log_probs, mask)
    torch.testing.assert_close(masked_standardize(3 * step.log_probs - 1, mask, eps=3e-6), z, atol=1e-8, rtol=1e-8)
    sums = z.sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-8, rtol=0.0)


@few
@given(trajectory_batches(with_branches=False), st.integers(0, 5), st.booleans(), st.data())
def test_the_choice_of_branch_points_follows_the_rows_and_sees_candidates_only(batch, budget, by_row, data):
    mask, group = batch.response_mask, batch.group
    # Scores that are all different: ties go by row.
    scores = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(budget)).view(mask.shape).double()
    preferred = batch.entropies > 1.0
    scope = "per_trajectory" if by_row else "per_prompt"
    chosen = select_branch_points(scores, preferred, mask, group, budget=budget, scope=scope)
    order = data.draw(st.permutations(range(len(group))).map(torch.tensor))
    moved = select_branch_points(scores[order], preferred[order], mask[order], group[order], budget=budget, scope=scope)
    places = set(zip(chosen.rows.tolist(), chosen.positions.tolist(), strict=True))
    assert places == set(zip(order[moved.rows].tolist(), moved.positions.tolist(), strict=True))
    for value in HIDDEN:
        dirty = scores.where(mask, value)
        same = select_branch_points(dirty, preferred | ~mask, mask, group, budget=budget, scope=scope)
        for ours, theirs in zip(same, chosen, strict=True):
            assert torch.equal(ours, theirs)


def long_batch() -> TrajectoryBatch:
    """An initial trajectory and a branch of it, of `LONG` positions each."""
    noise = random(3, 2, LONG, seed=0).float()
    return make_batch(
        token_ids=torch.ones(2, LONG, dtype=torch.int64),
        lengths=torch.tensor([LONG, LONG]),
        response_mask=(torch.arange(LONG) > 0).expand(2, LONG),
        behavior_log_probs=-noise[0].abs(),
        old_log_probs=-noise[0].abs() + 0.01 * noise[1],
        entropies=noise[2].abs(),
        rewards=torch.tensor([1.0, 0.0]),
        group=torch.tensor([0, 0]),
        parent=torch.tensor([NO_PARENT, 0]),
        branch_position=torch.tensor([NO_PARENT, LONG // 2]),
        branch_score=torch.tensor([0.0, 1.0]),
    )


@pytest.mark.parametrize("name", [*SCORERS, *ADVANTAGES, *LOSSES])
def test_no_component_needs_the_square_of_the_length(name):
    batch = long_batch()
    if name in SCORERS:
        none = torch.full_like(batch.parent, NO_PARENT)
        roots = replace(batch, parent=none, branch_position=none)
        scores = built(name)(roots, context_of(roots))
        assert scores.values.shape == batch.token_ids.shape
    elif name in ADVANTAGES:
        assert estimated(ADVANTAGES[name](), batch).isfinite().all()
    else:
        train = replace(batch, advantages=random(2, LONG, seed=1).float(), ref_log_probs=batch.old_log_probs)
        step = Step(batch.old_log_probs, batch.entropies, train)
        log_probs, entropies = step.leaves()
        LOSSES[name](kl_coef=0.1, entropy_coef=0.1)(log_probs, entropies, train)[0].backward()
        assert log_probs.grad.isfinite().all()
