"""Which tests run where: most of them on a CPU in any case, and those of a GPU on request, one after the other."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch


def hide_gpus(selection: str) -> None:
    """Leaves the CPU alone to the tests of this process, unless they are those of a GPU, and to what they start.

    Args:
        selection: what ``pytest -m`` was given.
    """
    if not selection.startswith("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def all_marks(marks: Collection[str], *, vllm_takes_gpus: bool) -> set[str]:
    """The marks of a test on this machine: those with a vLLM for GPUs are tests of a GPU."""
    return {*marks, "gpu"} if vllm_takes_gpus and "vllm" in marks else {*marks}


def reason_to_skip(marks: Collection[str], num_gpus: int | None = None) -> str:
    """Says why a test does not run here; nothing if it does.

    Args:
        marks: from `all_marks`.
        num_gpus: that this process sees; those that torch counts by default.
    """
    if "gpu" not in marks:
        return ""
    if "cpu" in marks:
        return "holds on a CPU alone"
    if "distributed" in marks:
        return "its processes would share a GPU; `appo doctor` checks several"
    num_gpus = torch.cuda.device_count() if num_gpus is None else num_gpus
    return "" if num_gpus else "there is no GPU, or it was not asked for with `pytest -m gpu`"
