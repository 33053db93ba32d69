from dataclasses import replace

import pytest
import torch

from appo.advantages import ADVANTAGES, GlobalBatchAdvantage, GroupAdvantage, LeaveOneOut
from tests.advantages.contexts import NO_CONTEXT
from tests.advantages.released_example import released_example


def test_group_advantage_compares_all_trajectories_of_a_prompt():
    advantages = GroupAdvantage()(released_example(branch_rewards=(1.0, 0.0)), NO_CONTEXT)
    expected = torch.tensor([1.0, -1.0, 1.0, -1.0]).unsqueeze(-1).expand(4, 5).clone()
    expected[1, 4] = 0.0
    torch.testing.assert_close(advantages, expected, atol=1e-4, rtol=0.0)


def test_leave_one_out_by_hand():
    # Rewards 1, 0, 0.5, -1; the others' means are -1/6, 1/6, 0, 1/2.
    advantages = LeaveOneOut()(released_example(), NO_CONTEXT)
    torch.testing.assert_close(advantages[:, 0], torch.tensor([1 + 1 / 6, -1 / 6, 0.5, -1.5]))


def test_global_batch_advantage_divides_by_the_spread_over_all_prompts():
    example = replace(released_example(), group=torch.tensor([0, 0, 1, 1]))
    # Deviations 1/2, -1/2, 3/4, -3/4: mean square 13/32.
    expected = torch.tensor([0.5, -0.5, 0.75, -0.75]) / (13 / 32) ** 0.5
    torch.testing.assert_close(GlobalBatchAdvantage()(example, NO_CONTEXT)[:, 0], expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("counted", [[True, True, True, False], [False] * 4])
def test_global_batch_advantage_measures_the_spread_of_what_counts(counted):
    example = replace(released_example(), group=torch.tensor([0, 0, 1, 1]))
    counts = torch.tensor(counted)
    by_row = GlobalBatchAdvantage().by_row(replace(example, train_mask=counts.unsqueeze(-1) & example.response_mask))
    # Deviations that count: 1/2, -1/2 and 3/4, mean square 17/48; without any there is nothing to divide by.
    spread = (17 / 48) ** 0.5 if any(counted) else 1e-6
    torch.testing.assert_close(by_row, torch.tensor([0.5, -0.5, 0.75, -0.75]) / spread, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["GroupAdvantage", "LeaveOneOut", "GlobalBatchAdvantage", "TreeAdvantage"])
def test_the_advantages_of_a_prompt_add_up_to_nothing(name, batch):
    by_row = ADVANTAGES[name]().by_row(batch)
    sums = torch.zeros(int(batch.group.max()) + 1).index_add(0, batch.group, by_row)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-5, rtol=0.0)
