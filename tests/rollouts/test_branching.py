"""Where a branch has room."""

from __future__ import annotations

import torch

from appo.core.collate import collate
from appo.core.trajectory import Prompt, Trajectory
from appo.rollouts.branching import has_room


def test_room_is_counted_from_the_end_of_the_prompt():
    mask = torch.tensor([False] + [True] * 9)
    trajectory = Trajectory(
        Prompt("q", "Q", (0,), ()), torch.arange(10), mask, -1.0 * mask, torch.where(mask, 0, -1), (), (), "eos"
    )
    # A prompt of one token and 8 of response: behind position p there are 8 - p left, so 5 is the last with 3.
    room = has_room(collate([trajectory]), max_response_tokens=8, min_remaining=3)
    assert room.nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5]
