"""Which decisions a continuation draws: not only the one that it begins with, but all that it comes upon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from appo.core.trajectory import RewardResult, Trajectory

NOTHING = -1
"""Stands for the token where a continuation ended before it drew one that was kept."""


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
    def token_ids(self) -> Tensor:
        """``[T + 1]`` int64: what it was given, though some of that may have been cut off, its own, and `NOTHING`."""
        origin, begin = self.trajectory.origin, self.trajectory.num_shared
        assert origin is not None
        return torch.cat(
            [origin.trajectory.token_ids[:begin], self.trajectory.token_ids[begin:], torch.tensor([NOTHING])]
        )


class DrawnTokens:
    """Finds the continuations of a question that draw a token of a root anew.

    A continuation that comes upon the very tokens of a root draws the next one as one that begins there does, and what
    follows: the policy sees nothing but those tokens. So a decision is not only drawn by its own continuations, but by
    those of earlier decisions that have not left the root until then. Which they are is settled by the tokens before,
    so that the token drawn and what it earns have no part in it, and no estimate gets a bias.

    What a policy writes behind a call, such as a result of its own, is cut off, and with it may go the token that was
    drawn. The continuation counts all the same, with what stands there instead: to end there is a choice like others.

    Args:
        continuations: of one question, at least one.
    """

    def __init__(self, continuations: Sequence[Continuation]) -> None:
        self.continuations = continuations
        rows = [each.token_ids for each in continuations]
        self._token_ids = pad_sequence(rows, batch_first=True, padding_value=NOTHING)
        self._begins = torch.tensor([each.trajectory.num_shared for each in continuations])

    def of(self, root: Trajectory, position: int) -> tuple[list[int], list[Continuation]]:
        """What was drawn in the place of one token of a root, and by which continuations.

        Args:
            root: of the same prompt.
            position: of a token that was sampled, and that at least one continuation begins with.

        Returns:
            Tokens, `NOTHING` where a continuation has ended before one, and the continuations.
        """
        comes_by = (self._token_ids[:, :position] == root.token_ids[:position]).all(-1)
        numbers = (comes_by & (self._begins <= position)).nonzero()[:, 0]
        return self._token_ids[numbers, position].tolist(), [self.continuations[number] for number in numbers.tolist()]
