"""Which decisions a continuation draws: not only the one that it begins with, but all that it comes upon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from appo.core.trajectory import RewardResult, Trajectory


@dataclass(frozen=True, eq=False)
class Continuation:
    """A branch of a root, whose first own token is drawn anew.

    Attributes:
        trajectory: the branch.
        result: what it earned.
        half: 0 or 1, which half of the continuations of its question it belongs to.
    """

    trajectory: Trajectory
    result: RewardResult
    half: int

    @property
    def begin(self) -> int:
        """Position of the token that it draws first."""
        assert self.trajectory.origin is not None
        return self.trajectory.origin.position + 1


class DrawnTokens:
    """Finds the continuations of a question that draw a token of a root anew.

    A continuation that comes upon the very tokens of a root draws the next one as one that begins there does, and what
    follows: the policy sees nothing but those tokens. So a decision is not only drawn by its own continuations, but by
    those of earlier decisions that have not left the root until then. Which they are is settled by the tokens before,
    so that the token drawn and what it earns have no part in it, and no estimate gets a bias.

    Args:
        continuations: of one question, at least one.
    """

    def __init__(self, continuations: Sequence[Continuation]) -> None:
        self.continuations = continuations
        trajectories = [each.trajectory for each in continuations]
        self._token_ids = pad_sequence([each.token_ids for each in trajectories], batch_first=True, padding_value=-1)
        self._is_sampled = pad_sequence([each.response_mask for each in trajectories], batch_first=True)
        self._begins = torch.tensor([each.begin for each in continuations])

    def of(self, root: Trajectory, position: int) -> list[Continuation]:
        """Those that draw one token of a root.

        Args:
            root: of the same prompt.
            position: of a token that was sampled, and that at least one continuation begins with.
        """
        comes_by = (self._token_ids[:, :position] == root.token_ids[:position]).all(-1)
        # A shorter one may have ended right before.
        draws = comes_by & (self._begins <= position) & self._is_sampled[:, position]
        return [self.continuations[number] for number in draws.nonzero()[:, 0].tolist()]
