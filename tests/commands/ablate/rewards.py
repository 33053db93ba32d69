"""A reward that stops the ablation to which the run belongs, as a user's Ctrl-C would."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from appo.core.trajectory import RewardResult, Trajectory
from tests.small_run import EvenTokens

CALLS = count()


@dataclass(frozen=True)
class StopsOnce(EvenTokens):
    """Interrupts the process that started this one at its 30th trajectory, unless the file `marker` is there."""

    marker: str = ""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        if next(CALLS) == 30 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getppid(), signal.SIGINT)
            # The rest of the iteration would be done before the signal is passed on.
            signal.pause()
        return super().__call__(trajectory)
