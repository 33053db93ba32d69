"""What a step of the doctor is given and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Status = Literal["PASS", "FAIL", "SKIP"]
Figure = str | int | float | bool | None | list[float]
Figures = dict[str, Figure]


class SkipStepError(Exception):
    """The step does not apply to this machine; the message says why."""


class StepError(Exception):
    """The machine has failed the step.

    Args:
        message: what is wrong.
        advice: what to do about it.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class Result:
    """Outcome of a step.

    Attributes:
        step: its name.
        status: whether the machine has passed.
        seconds: that it took.
        figures: what was measured, by name; the unit is the end of the name.
        message: why it failed or was skipped.
        advice: what to do about it.
    """

    step: str
    status: Status
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    message: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Machine:
    """Where steps run.

    Attributes:
        device_name: as torch names it, or `auto` for a GPU if there is one.
        folder: for policies, runs and logs.
    """

    device_name: str
    folder: Path

    @cached_property
    def device(self) -> torch.device:
        """The device under test."""
        import torch

        if self.device_name != "auto":
            device = torch.device(self.device_name)
            return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def num_devices(self) -> int:
        """Devices that processes of one run can have; a CPU is as many as are asked for."""
        import torch

        return torch.cuda.device_count() if self.is_gpu else 2

    def needs_gpu(self, why: str) -> None:
        """Skips the step on a CPU."""
        if not self.is_gpu:
            raise SkipStepError(f"needs a GPU: {why}")

    def needs_several(self) -> None:
        """Skips the step on a machine with one GPU."""
        if self.num_devices < 2:
            raise SkipStepError(f"needs two GPUs, found {self.num_devices}")
