from dataclasses import replace

import pytest
import torch

from appo.core.batch import NO_PARENT, PARENT_ELSEWHERE, TrajectoryBatch
from appo.core.buckets import length_buckets
from appo.core.collate import collate, make_batch
from appo.core.trajectory import BranchPoint, Prompt
from tests.core.two_turns import branch_trajectory, parent_trajectory


def collated(**values):
    parent = parent_trajectory()
    other = replace(parent_trajectory(), prompt=Prompt("q2", "?", (5, 6), ("1",)))
    return collate([parent, other, branch_trajectory(parent)], **values)


def train_batch(lengths: list[int]) -> TrajectoryBatch:
    """Every token of a row is its row number."""
    rows, width = len(lengths), max(lengths)
    token_ids = torch.arange(rows).unsqueeze(-1).expand(rows, width)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)
    zeros = torch.zeros(rows, width)
    return make_batch(token_ids, torch.tensor(lengths), mask, old_log_probs=zeros, advantages=zeros)


def evaluated(log_probs: list[float] | None = None, entropies: list[float] | None = None) -> TrajectoryBatch:
    """`collated`, with values of its first two rows; 0 where none are given."""
    values = [torch.tensor([row or [0.0] * 7] * 2) for row in (log_probs, entropies)]
    return collated().evaluated(torch.tensor([0, 1]), *values, policy_version=4)


def test_collates_two_turns_and_a_branch_off_the_second():
    batch = collated(rewards=[1, 0, 0])
    assert batch.token_ids.tolist() == [
        [5, 6, 10, 11, 20, 12, 13, 0, 0],
        [5, 6, 10, 11, 20, 12, 13, 0, 0],
        [5, 6, 10, 11, 20, 12, 14, 15, 16],
    ]
    assert batch.lengths.tolist() == [7, 7, 9]
    assert batch.prompt_lengths.tolist() == [2, 2, 2]
    assert batch.response_mask.int().tolist() == [
        [0, 0, 1, 1, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 1, 1, 1, 1],
    ]
    root = [0.0, 0.0, -0.1, -0.2, 0.0, -0.3, -0.4, 0.0, 0.0]
    branch = [0.0, 0.0, -0.1, -0.2, 0.0, -0.3, -0.5, -0.6, -0.7]
    torch.testing.assert_close(batch.behavior_log_probs, torch.tensor([root, root, branch]))
    assert batch.policy_versions[0].tolist() == [-1, -1, 3, 3, -1, 3, 3, -1, -1]
    assert batch.rewards.tolist() == [1.0, 0.0, 0.0]
    assert batch.rewards.dtype == torch.float32
    assert batch.group.tolist() == [0, 1, 0]
    assert batch.parent.tolist() == [NO_PARENT, NO_PARENT, 0]
    assert batch.branch_position.tolist() == [NO_PARENT, NO_PARENT, 5]
    assert batch.branch_score.tolist() == [0.0, 0.0, 1.5]
    assert batch.is_branch.tolist() == [False, False, True]
    assert batch.advantages is None
    assert not batch.has_gradient


def test_without_evaluation_rewards_are_unknown_and_log_probs_0():
    batch = collated()
    assert batch.rewards.isnan().all()
    assert not batch.old_log_probs.any()
    assert not batch.is_evaluated.any()


def test_an_evaluation_of_some_rows_leaves_the_others_and_the_batch_before_it():
    before = collated()
    batch = before.evaluated(
        torch.tensor([0, 1]),
        torch.tensor([[0.0, 0.0, -1.0, -2.0, 0.0, -3.0, -4.0]] * 2),
        torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.0, 3.0, 4.0]] * 2),
        policy_version=4,
    )
    assert batch.old_log_probs.tolist() == [[0, 0, -1, -2, 0, -3, -4, 0, 0]] * 2 + [[0] * 9]
    assert batch.entropies.tolist() == [[0, 0, 1, 2, 0, 3, 4, 0, 0]] * 2 + [[0] * 9]
    assert batch.evaluated_by.tolist() == [4, 4, -1]
    assert batch.is_evaluated.tolist() == [True, True, False]
    assert not before.old_log_probs.any()


def test_an_evaluation_of_roots_is_taken_over_to_the_batch_with_their_branches():
    parent = parent_trajectory()
    values = torch.tensor([[0.0, 0.0, -1.0, -2.0, 0.0, -3.0, -4.0]])
    roots = collate([parent]).evaluated(torch.tensor([0]), values, -values, policy_version=2)
    batch = collate([parent, branch_trajectory(parent)], evaluated=roots)
    assert batch.old_log_probs.tolist() == [[0, 0, -1, -2, 0, -3, -4, 0, 0], [0] * 9]
    assert batch.entropies[0].tolist() == [0, 0, 1, 2, 0, 3, 4, 0, 0]
    assert batch.evaluated_by.tolist() == [2, -1]


def test_what_a_branch_shares_has_the_log_probs_of_the_policy_that_sampled_it_for_another():
    root = parent_trajectory()
    asked = replace(root, sampling_log_probs=torch.tensor([0.0, 0.0, -1.1, -1.2, 0.0, -1.3, -1.4]))
    for parent in (root, asked):
        branch = branch_trajectory(parent)
        twig = replace(branch_trajectory(branch), origin=BranchPoint(branch, 6, 0.0))
        batch = collate([parent, branch, twig])
        if parent is root:
            assert batch.sampling_log_probs is None
            continue
        expected = [
            [0.0, 0.0, -1.1, -1.2, 0.0, -1.3, *ending] for ending in [[-1.4, 0.0, 0.0]] + 2 * [[-0.5, -0.6, -0.7]]
        ]
        torch.testing.assert_close(batch.sampling_log_probs, torch.tensor(expected))


def test_a_branch_before_its_parent_is_refused():
    parent = parent_trajectory()
    for trajectories in ([branch_trajectory(parent), parent], [branch_trajectory(parent)]):
        with pytest.raises(ValueError, match="branch in row 0 of prompt q1 must come after its parent"):
            collate(trajectories)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(reward):
    with pytest.raises(ValueError, match=f"rewards must be finite, got {reward} for prompt q2 in row 1"):
        collated(rewards=[0.0, reward, 0.0])


def test_another_number_of_rewards_than_trajectories_is_refused():
    with pytest.raises(ValueError, match="rewards must have one value for each of 3 trajectories, got 2"):
        collated(rewards=[0.0, 1.0])


@pytest.mark.parametrize("name", ["old_log_probs", "entropies"])
@pytest.mark.parametrize(
    ("position", "value", "rule"),
    [
        (5, float("nan"), "be finite, got nan at position 5"),
        (5, -float("inf"), "be finite, got -inf at position 5"),
        (4, -0.5, "be 0 on tokens that were not sampled, got -0.5 at position 4"),  # tool output
        (0, 0.5, "be 0 on tokens that were not sampled, got 0.5 at position 0"),  # prompt
        (4, float("nan"), "be 0 on tokens that were not sampled, got nan at position 4"),
    ],
)
def test_values_that_do_not_align_with_the_sampled_tokens_are_refused(name, position, value, rule):
    values = torch.zeros(2, 7)
    values[1, position] = value
    given = (values, torch.zeros(2, 7)) if name == "old_log_probs" else (torch.zeros(2, 7), values)
    with pytest.raises(ValueError, match=f"{name} in row 1 must {rule}"):
        collated().evaluated(torch.tensor([0, 1]), *given, policy_version=0)


def test_a_log_prob_above_0_and_an_entropy_below_it_are_refused():
    values = [0.0, 0.0, -1.0, 0.5, 0.0, -1.0, -1.0]
    with pytest.raises(ValueError, match=r"old_log_probs in row 0 must not be positive, got 0\.5 at position 3"):
        evaluated(log_probs=values)
    with pytest.raises(ValueError, match=r"entropies in row 0 must not be negative, got -0\.5 at position 3"):
        evaluated(entropies=[-max(0.0, value) for value in values])


def test_what_rounding_adds_to_a_certain_token_is_no_error():
    rounded = [0.0, 0.0, 1e-6, 0.0, 0.0, 1e-6, 0.0]
    batch = evaluated(rounded, [-value for value in rounded])
    assert batch.old_log_probs[0, 5] == -batch.entropies[0, 5] == torch.tensor(1e-6)


def test_behavior_log_probs_that_slipped_by_a_tool_result_are_refused():
    parent = parent_trajectory()
    # The result at position 4 was left out when log-probs were appended.
    slipped = replace(parent, behavior_log_probs=torch.tensor([0.0, 0.0, -0.1, -0.2, -0.3, -0.4, 0.0]))
    message = (
        "behavior_log_probs of prompt q1 in row 0 must be 0 on tokens that were not sampled, got -0.3.* position 4"
    )
    with pytest.raises(ValueError, match=message):
        collate([slipped])


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="trajectories must not be empty, got none"):
        collate([])
    empty = replace(parent_trajectory(), response_mask=torch.zeros(7, dtype=torch.bool))
    with pytest.raises(ValueError, match="trajectory of prompt q1 in row 0 must have a sampled token, got none"):
        collate([empty])


def test_behavior_log_probs_that_are_not_finite_are_refused():
    parent = parent_trajectory()
    bad = replace(parent, behavior_log_probs=torch.full((7,), float("-inf")))
    with pytest.raises(ValueError, match="behavior_log_probs of prompt q1 in row 0 must be finite, got -inf"):
        collate([bad])


def test_tensors_that_do_not_fit_the_batch_are_refused():
    batch = collated()
    with pytest.raises(ValueError, match=r"entropies must have shape \[3, 9\], got \[3, 8\]"):
        replace(batch, entropies=batch.entropies[:, :8])
    with pytest.raises(ValueError, match=r"rewards must have shape \[3\], got \[2\]"):
        replace(batch, rewards=batch.rewards[:2])


def test_selected_rows_are_cut_to_the_longest_of_them():
    part = train_batch([3, 5, 2]).select(torch.tensor([2, 0]))
    assert part.token_ids.tolist() == [[2, 2, 2], [0, 0, 0]]
    assert part.lengths.tolist() == [2, 3]
    assert part.response_mask.tolist() == [[True, True, False], [True, True, True]]
    assert part.ref_log_probs is None
    assert len(part) == 2


def test_joined_batches_are_padded_to_the_longest_and_forget_their_steps():
    short, long = train_batch([2]), replace(train_batch([1, 3]), num_tokens=100, num_rows=7)
    joined = TrajectoryBatch.cat([short, long])
    assert joined.token_ids.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert joined.response_mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert joined.lengths.tolist() == [2, 1, 3]
    assert (joined.num_tokens, joined.num_rows, joined.ref_log_probs) == (None, None, None)
    assert TrajectoryBatch.cat([long]).num_tokens is None


def test_a_branch_keeps_its_parent_among_selected_and_joined_rows():
    parent = parent_trajectory()
    other = replace(parent_trajectory(), prompt=Prompt("q2", "?", (5, 6), ("1",)))
    batch = collate([other, parent, branch_trajectory(parent)])
    assert batch.select(torch.tensor([1, 2])).parent.tolist() == [NO_PARENT, 0]
    alone = batch.select(torch.tensor([2]))
    assert alone.parent.tolist() == [PARENT_ELSEWHERE]
    assert alone.is_branch.tolist() == [True]
    joined = TrajectoryBatch.cat([batch.select(torch.tensor([0])), batch.select(torch.tensor([1, 2])), alone])
    assert joined.parent.tolist() == [NO_PARENT, NO_PARENT, 1, PARENT_ELSEWHERE]
    assert joined.group.tolist() == [0, 1, 1, 2]


def test_micro_batches_hold_every_row_once_and_the_totals_of_the_step():
    micros = train_batch([3, 5, 2, 5, 1]).micro_batches(max_tokens=10)
    assert [micro.token_ids[:, 0].tolist() for micro in micros] == [[1, 3], [0, 2, 4]]
    assert [tuple(micro.token_ids.shape) for micro in micros] == [(2, 5), (3, 3)]
    assert {(micro.num_tokens, micro.num_rows) for micro in micros} == {(16, 5)}


def test_micro_batches_of_a_policy_that_computes_shared_tokens_once_hold_as_many_distinct_ones():
    batch = train_batch([40, 40, 40, 30])
    token_ids = batch.token_ids.clone()
    token_ids[:3, :20] = 9
    batch = replace(batch, token_ids=token_ids)
    # 20 tokens that three rows share, and 20 of each.
    micros = batch.micro_batches(80, shares=True)
    assert [micro.token_ids[:, -1].tolist() for micro in micros] == [[0, 1, 2], [3]]
    assert [len(micro) for micro in batch.micro_batches(80)] == [2, 2]
    assert {(micro.num_tokens, micro.num_rows) for micro in micros} == {(150, 4)}


def test_rows_without_a_trained_token_are_in_no_micro_batch_and_count_as_trajectories():
    batch = train_batch([3, 5, 2])
    mask = batch.response_mask.clone()
    mask[1] = False
    (micro,) = replace(batch, train_mask=mask).micro_batches(max_tokens=10)
    assert micro.token_ids[:, 0].tolist() == [0, 2]
    assert (micro.num_tokens, micro.num_rows, micro.num_trajectories) == (5, 2, 3)


def test_totals_that_are_given_stay():
    (micro,) = replace(train_batch([2]), num_tokens=100, num_rows=7).micro_batches(10)
    assert (micro.num_tokens, micro.num_rows) == (100, 7)


def test_a_budget_counts_the_tokens_of_rows_and_no_padding():
    buckets = length_buckets(torch.tensor([2, 9, 3, 4]), max_tokens=11)
    assert [bucket.tolist() for bucket in buckets] == [[1], [3, 2, 0]]


def test_a_row_over_the_budget_stands_alone():
    buckets = length_buckets(torch.tensor([4, 20, 4]), max_tokens=8)
    assert [bucket.tolist() for bucket in buckets] == [[1], [0, 2]]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_tokens must be positive, got 0"):
        length_buckets(torch.tensor([1]), 0)


def test_a_batch_moves_with_all_its_tensors():
    batch = replace(train_batch([2, 1]), num_rows=5).to(torch.device("meta"))
    assert batch.token_ids.device.type == batch.advantages.device.type == "meta"
    assert batch.ref_log_probs is None
    assert batch.num_rows == 5
