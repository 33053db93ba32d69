from dataclasses import fields, replace

import pytest
import torch

from appo.advantages import (
    ADVANTAGES,
    EntropyAwareAdvantage,
    GlobalBatchAdvantage,
    GroupAdvantage,
    LeaveOneOut,
    ProceduralAdvantage,
    SharedPrefixAdvantage,
    TreeAdvantage,
)
from appo.core.batch import NO_PARENT, TrajectoryBatch


def released_example(branch_rewards: tuple[float, ...] = (0.5, -1.0)) -> TrajectoryBatch:
    """Two initial trajectories and two branches of the first, which share its positions up to 1 and 3."""
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 4] = False
    zeros = torch.zeros(4, 5)
    return TrajectoryBatch(
        token_ids=zeros.long(),
        lengths=torch.tensor([5, 4, 5, 5]),
        response_mask=mask,
        behavior_log_probs=zeros,
        old_log_probs=zeros,
        entropies=zeros,
        rewards=torch.tensor([1.0, 0.0, *branch_rewards]),
        group=torch.zeros(4, dtype=torch.int64),
        parent=torch.tensor([NO_PARENT, NO_PARENT, 0, 0]),
        branch_position=torch.tensor([NO_PARENT, NO_PARENT, 1, 3]),
        branch_score=torch.tensor([0.0, 0.0, 2.0, 1.0]),
    )


@pytest.mark.parametrize("name", ADVANTAGES)
def test_only_trained_tokens_have_an_advantage(name, batch):
    estimator = ADVANTAGES[name]()
    advantages = estimator(batch)
    assert advantages.shape == batch.token_ids.shape
    assert advantages.isfinite().all()
    assert (advantages[~batch.response_mask] == 0).all()
    assert advantages[batch.is_branch].any().item() == estimator.trains_branches


@pytest.mark.parametrize("name", ADVANTAGES)
def test_rows_do_not_depend_on_their_order(name, batch):
    rows = torch.tensor([3, 1, 5, 0, 4, 2])
    new_row = torch.empty(6, dtype=torch.int64).index_put((rows,), torch.arange(6))
    moved = {f.name: getattr(batch, f.name)[rows] for f in fields(batch)}
    moved["parent"] = torch.where(moved["parent"] == NO_PARENT, NO_PARENT, new_row[moved["parent"]])
    estimator = ADVANTAGES[name]()
    torch.testing.assert_close(estimator(replace(batch, **moved)), estimator(batch)[rows])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_log_probs_and_what_stands_behind_the_mask_do_not_matter(name, batch):
    nan = torch.full(batch.token_ids.shape, float("nan"))
    estimator = ADVANTAGES[name]()
    entropies = batch.entropies.where(batch.response_mask, nan)
    dirty = replace(batch, old_log_probs=nan, behavior_log_probs=nan, entropies=entropies)
    torch.testing.assert_close(estimator(dirty), estimator(batch))


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.1])
def test_equal_rewards_give_exactly_nothing_to_train_on(name, reward, batch):
    assert not ADVANTAGES[name]()(replace(batch, rewards=torch.full((6,), reward))).any()


def test_procedural_advantage_by_hand():
    # Initial: (1, -1). Branches: (1, -1), whose mean is 0 on positions 0..1 and -1 on 2..3.
    expected = [[1.0, 1.0, 0.0, 0.0, 1.0], [-1.0, -1.0, -1.0, -1.0, 0.0], [0.0] * 5, [0.0] * 5]
    torch.testing.assert_close(ProceduralAdvantage()(released_example()), torch.tensor(expected), atol=1e-4, rtol=0.0)


def test_initial_trajectories_and_branches_are_compared_apart():
    # Branches far better than any initial trajectory, yet equal: no credit.
    advantages = ProceduralAdvantage()(released_example(branch_rewards=(9.0, 9.0)))
    torch.testing.assert_close(advantages[0], torch.ones(5), atol=1e-4, rtol=0.0)


def test_branches_of_one_parent_cancel_before_the_first_leaves():
    advantages = ProceduralAdvantage()(released_example(branch_rewards=(0.3, 0.9)))
    torch.testing.assert_close(advantages[0, :2], torch.ones(2), atol=1e-4, rtol=0.0)


def test_the_divisor_is_an_option():
    advantages = ProceduralAdvantage(std="none")(released_example())
    # initial: 0.5, -0.5; branches: 0.75, -0.75
    torch.testing.assert_close(advantages[0], torch.tensor([0.5, 0.5, -0.25, -0.25, 0.5]))
    sample = GroupAdvantage(std="sample")(released_example((1.0, 0.0)))
    torch.testing.assert_close(sample[0, 0], torch.tensor(0.5 / (1 / 3) ** 0.5), atol=1e-4, rtol=0.0)


def test_reward_scaling_acts_on_a_trajectory_branched_at_its_last_token():
    batch = released_example()
    scaled = ProceduralAdvantage(std="none", reward_scale_discount=0.9)
    torch.testing.assert_close(scaled(batch), ProceduralAdvantage(std="none")(batch))
    at_end = replace(batch, branch_position=torch.tensor([NO_PARENT, NO_PARENT, 4, 3]))
    # Branch 2 has the largest score and leaves at the end: M = 2 there, and 1 of branch 3, so 1.5 in the mean.
    torch.testing.assert_close(scaled(at_end)[1, 0], torch.tensor(-0.75))


def test_group_advantage_compares_all_trajectories_of_a_prompt():
    advantages = GroupAdvantage()(released_example(branch_rewards=(1.0, 0.0)))
    expected = torch.tensor([1.0, -1.0, 1.0, -1.0]).unsqueeze(-1).expand(4, 5).clone()
    expected[1, 4] = 0.0
    torch.testing.assert_close(advantages, expected, atol=1e-4, rtol=0.0)


def test_a_bad_discount_is_refused():
    with pytest.raises(ValueError, match=r"reward_scale_discount must lie in \[0, 1\], got 2.0"):
        ProceduralAdvantage(reward_scale_discount=2.0)


def test_leave_one_out_by_hand():
    # Rewards 1, 0, 0.5, -1; the others' means are -1/6, 1/6, 0, 1/2.
    advantages = LeaveOneOut()(released_example())
    torch.testing.assert_close(advantages[:, 0], torch.tensor([1 + 1 / 6, -1 / 6, 0.5, -1.5]))


def test_global_batch_advantage_divides_by_the_spread_over_all_prompts():
    example = replace(released_example(), group=torch.tensor([0, 0, 1, 1]))
    # Deviations 1/2, -1/2, 3/4, -3/4: mean square 13/32.
    expected = torch.tensor([0.5, -0.5, 0.75, -0.75]) / (13 / 32) ** 0.5
    torch.testing.assert_close(GlobalBatchAdvantage()(example)[:, 0], expected, atol=1e-5, rtol=0.0)


def test_shared_prefix_advantage_by_hand():
    # Deviations from the mean 1/8: 7/8, -1/8, 3/8, -9/8. Row 0 shares 0..1 with rows 2 and 3, and 2..3 with row 3.
    advantages = SharedPrefixAdvantage(std="none")(released_example())
    both, one = (7 + 3 - 9) / 8 / 3, (7 - 9) / 8 / 2
    expected = [
        [both, both, one, one, 7 / 8],
        [-1 / 8] * 4 + [0.0],
        [both, both, 3 / 8, 3 / 8, 3 / 8],
        [both, both, one, one, -9 / 8],
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_tree_advantage_by_hand():
    # Within the prompt: 7/8, -1/8, 3/8, -9/8. Rows 0, 2, 3 are a tree of mean 1/6; row 1 is alone in its own.
    advantages = TreeAdvantage(std="none")(released_example())[:, 0]
    torch.testing.assert_close(advantages, torch.tensor([7 / 8 + 5 / 6, -1 / 8, 3 / 8 + 1 / 3, -9 / 8 - 7 / 6]))


def test_entropy_aware_advantage_by_hand():
    example = released_example()
    entropies = torch.where(torch.arange(5) % 2 == 0, 1.0, 3.0).expand(4, 5)
    values = entropies[example.response_mask]
    z = (entropies - values.mean()) / (values.std(correction=0) + 1e-6)
    advantages = EntropyAwareAdvantage(std="none", weight=0.5)(replace(example, entropies=entropies))
    by_row = torch.tensor([7 / 8, -1 / 8, 3 / 8, -9 / 8]).unsqueeze(-1)
    torch.testing.assert_close(advantages, (by_row * (1 + 0.5 * z)).where(example.response_mask, 0.0))
    plain = EntropyAwareAdvantage(std="none", weight=0.0)(replace(example, entropies=entropies))
    torch.testing.assert_close(plain, GroupAdvantage(std="none")(example))


@pytest.mark.parametrize("name", ["GroupAdvantage", "LeaveOneOut", "GlobalBatchAdvantage", "TreeAdvantage"])
def test_the_advantages_of_a_prompt_add_up_to_nothing(name, batch):
    by_row = ADVANTAGES[name]().by_row(batch)
    sums = torch.zeros(int(batch.group.max()) + 1).index_add(0, batch.group, by_row)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-5, rtol=0.0)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"weight must not be negative, got -0.1"):
        EntropyAwareAdvantage(weight=-0.1)
