import torch

from appo.advantages import DualGroupAdvantage, GroupAdvantage, ProceduralAdvantage
from tests.advantages.contexts import NO_CONTEXT
from tests.advantages.released_example import released_example


def test_procedural_advantage_by_hand():
    # Initial: (1, -1). Branches: (1, -1), whose mean is 0 on positions 0..1 and -1 on 2..3.
    expected = [[1.0, 1.0, 0.0, 0.0, 1.0], [-1.0, -1.0, -1.0, -1.0, 0.0]]
    # What a branch shares is its parent's; behind that, nobody leaves it.
    expected += [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, -1.0]]
    torch.testing.assert_close(
        ProceduralAdvantage()(released_example(), NO_CONTEXT), torch.tensor(expected), atol=1e-4, rtol=0.0
    )


def test_initial_trajectories_and_branches_are_compared_apart():
    # Branches far better than any initial trajectory, yet equal: no credit.
    advantages = ProceduralAdvantage()(released_example(branch_rewards=(9.0, 9.0)), NO_CONTEXT)
    torch.testing.assert_close(advantages[0], torch.ones(5), atol=1e-4, rtol=0.0)


def test_branches_of_one_parent_cancel_before_the_first_leaves():
    advantages = ProceduralAdvantage()(released_example(branch_rewards=(0.3, 0.9)), NO_CONTEXT)
    torch.testing.assert_close(advantages[0, :2], torch.ones(2), atol=1e-4, rtol=0.0)


def test_the_divisor_is_an_option():
    advantages = ProceduralAdvantage(std="none")(released_example(), NO_CONTEXT)
    # initial: 0.5, -0.5; branches: 0.75, -0.75
    torch.testing.assert_close(advantages[0], torch.tensor([0.5, 0.5, -0.25, -0.25, 0.5]))
    sample = GroupAdvantage(std="sample")(released_example((1.0, 0.0)), NO_CONTEXT)
    torch.testing.assert_close(sample[0, 0], torch.tensor(0.5 / (1 / 3) ** 0.5), atol=1e-4, rtol=0.0)


def test_the_mean_of_two_comparisons_by_hand():
    """Eq. (6) of the paper: roots 0.5 +- 0.5, branches -0.25 +- 0.75."""
    advantages = DualGroupAdvantage()(released_example(), NO_CONTEXT)
    expected = torch.tensor([[4 / 3] * 5, [-1 / 3] * 5, [(0.0 + 1.0) / 2] * 5, [(-3.0 - 1.0) / 2] * 5])
    expected[1, 4] = 0.0
    torch.testing.assert_close(advantages, expected, atol=1e-4, rtol=0.0)


def test_a_group_without_a_scale_counts_nothing():
    advantages = DualGroupAdvantage()(released_example(branch_rewards=(9.0, 9.0)), NO_CONTEXT)
    torch.testing.assert_close(advantages[:2, 0], torch.tensor([0.5, -0.5]), atol=1e-4, rtol=0.0)
