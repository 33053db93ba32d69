"""Who may be branched, how often, and where a branch has room."""

from __future__ import annotations

import pytest
import torch

from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate, make_batch
from appo.core.trajectory import Prompt, Trajectory
from appo.rollouts.branching import Branching, has_room, possible_parents
from appo.rollouts.budgets import branch_budgets


def test_room_is_counted_from_the_end_of_the_prompt():
    mask = torch.tensor([False] + [True] * 9)
    trajectory = Trajectory(
        Prompt("q", "Q", (0,), ()), torch.arange(10), mask, -1.0 * mask, torch.where(mask, 0, -1), (), (), "eos"
    )
    # A prompt of one token and 8 of response: behind position p there are 8 - p left, so 5 is the last with 3.
    room = has_room(collate([trajectory]), max_response_tokens=8, min_remaining=0.375)
    assert room.nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5]


def _batch(rewards: dict[str, list[float]], parents: list[int]) -> TrajectoryBatch:
    """Rows of one sampled token; parents by row, of all prompts."""
    values = [value for of_prompt in rewards.values() for value in of_prompt]
    group = [number for number, of_prompt in enumerate(rewards.values()) for _ in of_prompt]
    return make_batch(
        token_ids=torch.zeros(len(values), 2, dtype=torch.int64),
        lengths=torch.full((len(values),), 2),
        response_mask=torch.tensor([[False, True]] * len(values)),
        rewards=torch.tensor(values),
        group=torch.tensor(group),
        parent=torch.tensor(parents),
        branch_position=torch.tensor([-1 if parent < 0 else 0 for parent in parents]),
    )


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ("any", [1, 1, 1, 1, 1, 1]), ("mixed", [1, 1, 1, 1, 0, 0]),
        ("right", [1, 0, 0, 1, 0, 0]), ("wrong", [0, 1, 1, 0, 0, 0]),
    ],
)  # fmt: skip
def test_the_rewards_of_roots_decide_who_is_branched(parents, expected):
    # The last row of the first prompt is a branch: it is right, above the mean 1 / 3 of its roots.
    batch = _batch({"P": [1.0, 0.0, 0.0, 1.0], "Q": [1.0, 1.0]}, [-1, -1, -1, 0, -1, -1])
    assert _parents(batch, torch.ones(6, dtype=torch.bool), parents) == expected
    some = torch.tensor([True, False, True, False, True, True])
    assert _parents(batch, some, parents) == [a * b for a, b in zip(expected, some.int().tolist(), strict=True)]


@pytest.mark.parametrize(
    ("parents", "expected"),
    [("any", [1, 1, 0, 1, 0, 0]), ("mixed", [0] * 6), ("right", [0] * 6), ("wrong", [0] * 6)],
)
def test_roots_that_do_not_count_are_not_compared_with(parents, expected):
    # What counts of the first prompt is worth 1, but for a branch; of the second nothing counts.
    batch = _batch({"P": [1.0, 1.0, 0.0, 0.5], "Q": [1.0, 0.0]}, [-1, -1, -1, 0, -1, -1])
    assert _parents(batch, torch.tensor([True, True, False, True, False, False]), parents) == expected


@pytest.mark.parametrize(("parents", "expected"), [("right", [0, 0, 1, 1]), ("wrong", [1, 0, 0, 0])])
def test_who_is_worth_the_mean_is_neither_right_nor_wrong(parents, expected):
    batch = _batch({"P": [0.0, 0.5, 1.0, 0.75]}, [-1, -1, -1, 0])
    assert _parents(batch, torch.ones(4, dtype=torch.bool), parents) == expected


def _parents(batch: TrajectoryBatch, counts: torch.Tensor, parents: str) -> list[int]:
    found = possible_parents(batch, counts, Branching(parents=parents), lambda row: torch.Generator())
    return found.int().tolist()


def test_from_the_second_round_on_trajectories_of_the_trees_are_drawn_uniformly():
    branching = Branching(10, 2, selection="per_trajectory", parents="any", rounds=2)
    batch, every = _batch({"P": [1.0, 0.0, 0.0, 0.0]}, [-1, -1, 0, 1]), torch.ones(4, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([possible_parents(batch, every, branching, lambda row: generator) for _ in range(2000)])
    assert (drawn.sum(-1) == 2).all()
    # Each of 6 pairs comes with probability 1 / 6: 333 times, give or take five standard deviations of 17.
    counts = torch.bincount((drawn * torch.tensor([1, 2, 4, 8])).sum(-1))
    assert all(abs(int(count) - 333) < 85 for count in counts[counts > 0])
    assert int((counts > 0).sum()) == 6


@pytest.mark.parametrize(
    ("spare", "expected"),
    [("drop", [8, 8, 0, 0]), ("roots", [8, 8, 0, 0]), ("others", [16, 16, 0, 0])],
)
def test_branches_that_a_prompt_has_no_use_for_go_where_they_are_sent(spare, expected):
    is_open = {"P": True, "Q": True, "R": False, "S": False}
    assert list(branch_budgets(is_open, Branching(spare_budget=spare)).values()) == expected


def test_what_does_not_divide_goes_to_the_first_by_name_and_siblings_stay_together():
    is_open = {"R": True, "P": True, "Q": False, "S": True}
    budgets = branch_budgets(is_open, Branching(12, 4, siblings=2))
    assert budgets == {"P": 12, "R": 10, "S": 10, "Q": 0}
    assert branch_budgets(dict.fromkeys("PQ", False), Branching()) == {"P": 0, "Q": 0}


def test_bad_options_are_refused():
    for options, message in (
        ({"rounds": 0}, "rollout.branching.rounds must be at least 1, got 0"),
        ({"siblings": 0}, "rollout.branching.siblings must be at least 1, got 0"),
        ({"siblings": 3}, "must be a multiple of rounds [*] siblings = 3 with rollout.branching.selection=per_prompt"),
        ({"selection": "per_trajectory", "rounds": 2}, "rounds [*] siblings [*] num_roots = 16"),
        ({"parents": "all"}, "rollout.branching.parents must be one of any, mixed, right, wrong, got 'all'"),
        ({"train_on": "all"}, "rollout.branching.train_on must be one of roots, suffixes, both, trajectories"),
        ({"spare_budget": "all"}, "rollout.branching.spare_budget must be one of others, roots, drop"),
        ({"min_remaining": 1.0}, r"rollout.branching.min_remaining must lie in \[0, 1\), got 1.0"),
        ({"sibling_penalty": -1.0}, "rollout.branching.sibling_penalty must not be negative, got -1.0"),
        ({"min_distance": 0}, "rollout.branching.min_distance must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Branching(**options)
