"""Engines that sample beside the trainer, and a loss that meets them in the middle of an update."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.engines import Completion, HFEngine
from appo.losses import ClippedLoss

_LONG_S = 60.0
"""Far beyond what anything here takes: a test that waits so long has failed."""

_SHORT_S = 0.01

_AHEAD = range(16, 32)
"""Numbers of the trajectories that iteration 0 samples for iteration 1: it has sampled 16 of its own before."""


@dataclass
class AsynchronousEngine(HFEngine):
    """A transformers model on the CPU beside a policy on the CPU: slow, and right."""

    is_asynchronous: ClassVar[bool] = True


class Meeting:
    """What happened when; a test begins with a new one.

    Attributes:
        updating: set by the loss of the first update.
        num_in_flight: requests in the engine at that moment.
        losses: how often a loss was computed.
        breaks: whether the engine raises as soon as the update has begun.
        interrupts: whether a user does.
        is_late: whether the engine takes until the trainer waits for it.
    """

    def __init__(self, *, breaks: bool = False, interrupts: bool = False, is_late: bool = False) -> None:
        self.updating = threading.Event()
        self.num_in_flight = 0
        self.losses = 0
        self.breaks = breaks
        self.interrupts = interrupts
        self.is_late = is_late

    @property
    def is_over(self) -> bool:
        """Whether the engine may let go of what it keeps back."""
        return self.updating.is_set() and (not self.is_late or _trainer_is_in("finish"))


def _trainer_is_in(function: str) -> bool:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


meeting = Meeting()


def meet(**options: bool) -> Meeting:
    """Forgets what happened before."""
    global meeting
    meeting = Meeting(**options)
    return meeting


@dataclass
class HeldEngine(AsynchronousEngine):
    """Keeps back what is sampled ahead in the first iteration until its first update has begun."""

    _held: list[Completion] = field(init=False, repr=False, compare=False, default_factory=list)
    _waits: int = field(init=False, repr=False, compare=False, default=0)

    @property
    def num_in_flight(self) -> int:
        return super().num_in_flight + len(self._held)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        assert not self._held, "weights are exchanged with trajectories on their way"
        super().update_weights(weights, version)

    def step(self) -> list[Completion]:
        if meeting.is_over:
            if meeting.breaks:
                raise RuntimeError("the engine broke")
            held, self._held = self._held, []
            return [*held, *super().step()]
        if not meeting.updating.is_set():
            meeting.num_in_flight = self.num_in_flight
        if not super().num_in_flight:
            # Nobody else is left; the trainer may have branches to submit.
            threading.Event().wait(_SHORT_S)
            self._waits += 1
            assert self._waits < _LONG_S / _SHORT_S, "the trainer waits for trajectories of the next iteration"
        finished = super().step()
        self._held += [completion for completion in finished if completion.id in _AHEAD]
        return [completion for completion in finished if completion.id not in _AHEAD]


@dataclass(frozen=True)
class MeetingLoss(ClippedLoss):
    """Lets the engine go on."""

    def __call__(
        self, log_probs: Tensor, entropies: Tensor, batch: TrajectoryBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        meeting.losses += 1
        meeting.updating.set()
        if meeting.interrupts:
            raise KeyboardInterrupt
        if meeting.breaks:
            for thread in sampling_threads():
                thread.join(_LONG_S)
        return super().__call__(log_probs, entropies, batch)


def sampling_threads() -> list[threading.Thread]:
    """Those that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == "appo-sampling"]
