"""A tiny policy that every test of this folder starts from."""

from __future__ import annotations

import pytest

from appo.policy.loading import load_tokenizer
from tests.sft.small_source import TINY


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    TINY.build(path)
    return path


@pytest.fixture(scope="session")
def tokenizer(folder):
    return load_tokenizer(str(folder))
