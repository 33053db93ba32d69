"""Mathematical equality, with answers that are written to make it take forever."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appo.rewards import Grading, MathReward, RewardRunner
from tests.rewards.responses import boxed, trajectory

pytest.importorskip("math_verify", reason="needs the extra appo[math]")


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(num_processes=1, timeout_s=20.0)
    reward.start()
    yield reward
    reward.stop()


@pytest.mark.parametrize(
    ("answer", "accepted", "is_right"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac12", r"\frac{1}{2}", True),
        ("2/4", "1/2", True),
        ("-3", "3", False),
        ("9.80", "980", False),
        ("9.80", "9.8", True),
        ("1,000", "1000", True),
        (r"\text{Paris}", "Paris", True),
        (r"\text{(A)}", "A", True),
        ("B", "(A)", False),
        ("Yes", "yes", True),
        ("yes", "no", False),
        ("on", "no", False),
        # Read as products, these would be equal.
        ("act", "cat", False),
        ("1+2x", "2x+1", True),
        (r"(x-1)(x+1)", "x^2-1", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("x=3", "3", True),
        ("(3,4)", "[3,4]", False),
        (r"\{2, 1\}", r"\{1, 2\}", True),
        (r"-\infty", r"\infty", False),
        ("0.333", r"\frac{1}{3}", False),
        ("50%", r"50\%", True),
        (r"\not mathematics", "3", False),
        (r"\frac{1}{0}", "3", False),
    ],
)
def test_answers_are_equal_as_mathematics(reward, answer, accepted, is_right):
    result = reward(boxed(answer, ["-77", accepted]))
    wanted = {"accuracy": is_right, "format": 1.0, "answered": 1.0, "undecided": 0.0}
    assert {name: result.parts[name] for name in wanted} == wanted
    assert result.reward == is_right


def test_a_response_without_an_answer_is_not_compared(reward):
    assert reward(trajectory("I do not know.")).parts == {
        "accuracy": 0.0,
        "exact_match": 0.0,
        "f1": 0.0,
        "format": 0.0,
        "answered": 0.0,
        "undecided": 0.0,
    }


def test_words_are_compared_beside_the_mathematics(reward):
    result = reward(boxed("x + 2 = y", ["1 + x"]))
    assert result.parts["exact_match"] == 0.0
    equal = reward(boxed(r"\int_0^1 2x\,dx", ["1"]))
    assert (equal.parts["accuracy"], equal.parts["exact_match"]) == (1.0, 0.0)
    same = reward(boxed("0.5", [r"\frac{1}{2}"]))
    assert (same.parts["accuracy"], same.parts["exact_match"], same.parts["f1"]) == (1.0, 1.0, 1.0)


def test_the_scale_applies(reward):
    graded = replace(reward, grading=Grading(right_malformed=0.5))
    assert graded(trajectory(r"\boxed{Paris}")).reward == 0.5


def test_rounding_is_an_option():
    reward = MathReward(float_rounding=2, num_processes=1)
    reward.start()
    try:
        assert reward(boxed("3.1416", ["3.14159"])).reward == 1.0
        assert reward(boxed("3.15", ["3.14159"])).reward == 0.0
    finally:
        reward.stop()


def test_an_answer_that_takes_forever_is_wrong_and_counted_and_the_next_is_scored():
    reward = MathReward(timeout_s=1.0, num_processes=1)
    runner = RewardRunner(reward, 2)
    runner.start()
    try:
        begin = time.monotonic()
        slow, right = runner([boxed("9^{9^{9^{9}}}", ["3"]), boxed("0.5", ["1/2"])])
        assert time.monotonic() - begin < 30.0
    finally:
        runner.stop()
    assert (slow.reward, slow.parts["undecided"]) == (0.0, 1.0)
    # Of its second, what was left for this pair.
    assert re.fullmatch(
        r"equivalence\.py:is_equivalent took longer than (1|0\.\d+) s: answered '9\^\{9\^.*', accepted '3'", slow.reason
    )
    assert (right.reward, right.parts["undecided"]) == (1.0, 0.0)


def test_each_pair_is_compared_once(reward, monkeypatch):
    calls = []
    call = reward._pool.call
    monkeypatch.setattr(reward._pool, "call", lambda *arguments: calls.append(arguments) or call(*arguments))
    for _ in range(3):
        assert reward(boxed(r"\int_0^2 x\,dx", ["2"])).reward == 1.0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0.0}, "timeout_s must be positive, got 0.0"),
        ({"float_rounding": -1}, "float_rounding must not be negative, got -1"),
        ({"num_processes": 0}, "num_processes must be positive, got 0"),
        ({"memory_mb": 16}, "memory_mb must be at least 256"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MathReward(**options)
