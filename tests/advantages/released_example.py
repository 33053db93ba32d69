"""The batch that the advantages are worked out on by hand."""

import torch

from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch


def released_example(branch_rewards: tuple[float, ...] = (0.5, -1.0)) -> TrajectoryBatch:
    """Two initial trajectories and two branches of the first, which share its positions up to 1 and 3."""
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 4] = False
    zeros = torch.zeros(4, 5)
    return make_batch(
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
