"""Which of a GPU's kernels of attention may run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Leaves out cuDNN's attention, which torch prefers on some GPUs and prepares anew for every new shape.

    That takes up to a second, for keys of every length that a sequence has or grows to; FlashAttention's kernel takes
    any length at about the same speed.
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)
