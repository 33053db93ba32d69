"""A tokenizer, and a run written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appo.policy.loading import load_tokenizer
from tests.commands.view.runs import family, write_run


@pytest.fixture(scope="session")
def tokenizer(policy_folder) -> Any:
    return load_tokenizer(str(policy_folder))


@pytest.fixture
def run_folder(tmp_path, policy_folder, tokenizer) -> Path:
    """Two iterations that ask the same question, the second one another one, too."""
    first = family(tokenizer)
    second = [*family(tokenizer, "what else is it?", "r"), *family(tokenizer, first=4)]
    return write_run(tmp_path / "run", policy_folder, {"iteration_00000": first, "iteration_00001": second})
