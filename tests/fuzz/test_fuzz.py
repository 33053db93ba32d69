"""The short form of every campaign: the same inputs in every run, and those that have found something once."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.targets import NAMES, corpus, target_named

NUM_INPUTS = {"channel": 15, "graders": 40}
"""Where an input takes long."""


@pytest.mark.parametrize("name", NAMES)
def test_what_has_found_something_finds_nothing(name):
    target = target_named(name)
    inputs = corpus(name)
    assert inputs
    with target.opened() as check:
        for value in inputs:
            target.run(check, value)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_in_a_few_seconds(name):
    target = target_named(name)
    with target.opened() as check:

        @settings(
            max_examples=NUM_INPUTS.get(name, 100),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        @given(target.inputs)
        def try_one(value):
            target.run(check, value)

        try_one()
