"""What GPUs can do, and how much of that is reached."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """A kind of device.

    Attributes:
        flops: bfloat16 operations a second of dense matrices, at most.
        bandwidth: bytes a second from its memory, at most.
        link: bytes a second to the other devices of its node, at most.
    """

    flops: float
    bandwidth: float
    link: float


DEVICES = {
    "A100": Device(312e12, 2.039e12, 600e9),
    "H100": Device(989.4e12, 3.35e12, 900e9),
    "H200": Device(989.4e12, 4.8e12, 900e9),
    "B200": Device(2250e12, 8.0e12, 1800e9),
    "L40S": Device(362e12, 0.864e12, 64e9),
    "cpu": Device(1e11, 2e10, 1e9),
}
"""By what people call them: the SXM forms with 80 GB or more, from NVIDIA's data sheets, without sparsity. The last is
about what two cores of a CPU can do, and says nothing without a probe."""

TRAINING_SHARE = 0.4
"""Of the operations a second that updates and log-probs reach; an estimate."""

PREFILL_SHARE = 0.5
"""The same of an engine that reads prompts; an estimate."""

DECODING_SHARE = 0.6
"""Of the bandwidth that an engine reaches while it samples; an estimate."""

LINK_SHARE = 0.3
"""Of the bandwidth between devices on which weights go to the engine; an estimate."""

STEP_S = 0.003
"""Seconds that an engine's step takes at least, for its scheduling; an estimate."""
