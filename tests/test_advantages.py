from dataclasses import fields, replace

import pytest
import torch

from appo.advantages import ADVANTAGES, GroupAdvantage, ProceduralAdvantage
from appo.batch import NO_PARENT, TrajectoryBatch


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
def test_log_probs_and_entropies_do_not_matter(name, batch):
    nan = torch.full(batch.token_ids.shape, float("nan"))
    estimator = ADVANTAGES[name]()
    dirty = replace(batch, old_log_probs=nan, behavior_log_probs=nan, entropies=nan)
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
