"""Small hand-made batches shared by the tests."""

from __future__ import annotations

import pytest
import torch

from appo.batch import NO_PARENT, TrajectoryBatch


@pytest.fixture
def batch() -> TrajectoryBatch:
    """Two prompts with two initial trajectories each, and one branch of row 0 and one of row 2.

    Position 0 is the prompt; row 1 stops early, row 3 has tool output at position 2.
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor(
        [
            [0, 1, 1, 1, 1, 1],
            [0, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 1, 0],
            [0, 1, 0, 1, 1, 1],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 1, 1],
        ],
        dtype=torch.bool,
    )
    log_probs = -torch.rand(6, 6, generator=generator) * mask
    return TrajectoryBatch(
        token_ids=torch.arange(36).reshape(6, 6) * (mask | (torch.arange(6) < 3)),
        lengths=torch.tensor([6, 3, 5, 6, 4, 6]),
        response_mask=mask,
        behavior_log_probs=log_probs,
        old_log_probs=log_probs + 0.1 * torch.randn(6, 6, generator=generator) * mask,
        entropies=torch.rand(6, 6, generator=generator) * mask,
        rewards=torch.tensor([1.0, 0.0, 1.0, 0.25, 0.5, -1.0]),
        group=torch.tensor([0, 0, 1, 1, 0, 1]),
        parent=torch.tensor([NO_PARENT, NO_PARENT, NO_PARENT, NO_PARENT, 0, 2]),
        branch_position=torch.tensor([NO_PARENT, NO_PARENT, NO_PARENT, NO_PARENT, 2, 4]),
        branch_score=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.7, 0.2]),
    )
