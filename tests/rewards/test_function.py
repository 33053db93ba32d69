"""A user's function as a reward, in threads and in processes."""

from __future__ import annotations

import os
import threading

import pytest

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import AnswerReward, CompositeReward, FunctionReward, RewardError, RewardRunner, as_reward
from tests.rewards import functions
from tests.rewards.responses import boxed, trajectory

MODULE = "tests.rewards.functions"


def test_a_number_is_the_reward():
    reward = FunctionReward(f"{MODULE}:length", {"scale": 0.5})
    assert reward(trajectory("abcd")).reward == 2.0
    assert FunctionReward(f"{MODULE}:as_tensor")(trajectory("abcd")).reward == 0.5


def test_a_plain_function_is_a_reward_wherever_one_is_taken():
    def short(trajectory: Trajectory) -> float:
        return -float(len(trajectory.text))

    def named(trajectory: Trajectory) -> RewardResult:
        return RewardResult(1.0, {"accuracy": 0.5, "on_main": float(in_main_thread())}, "fine")

    def in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert RewardRunner(short)([trajectory("abc")])[0].reward == -3.0
    (result,) = RewardRunner(CompositeReward({"short": short, "named": named}))([trajectory("abc")])
    assert (result.reward, result.parts["accuracy"], result.parts["named/on_main"]) == (-2.0, 0.5, 0.0)
    reward = AnswerReward()
    assert as_reward(reward) is reward


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (AnswerReward, "neither a class nor a coroutine function, got <class 'appo.rewards.answer.AnswerReward'>"),
        (functions.later, "neither a class nor a coroutine function, got <function later"),
        (functions.without_arguments, "function must take a trajectory and the options {}, got <function without_"),
        (3, "function must be callable, .* got 3"),
        (None, "function must be callable, .* got None"),
    ],
)
def test_what_is_no_reward_is_refused_in_one_line(reward, message):
    with pytest.raises(ValueError, match=message) as error:
        as_reward(reward)
    assert "\n" not in str(error.value)


def test_a_function_needs_an_import_path_to_run_in_processes():
    with pytest.raises(ValueError, match="function must be an import path to run in processes, got <function length"):
        FunctionReward(functions.length, num_processes=1)


def test_it_runs_off_the_main_thread():
    assert RewardRunner(FunctionReward(f"{MODULE}:thread_is_main"))([boxed("x")])[0].reward == 0.0


def test_it_may_run_in_a_process_instead():
    runner = RewardRunner(FunctionReward(f"{MODULE}:process_id", num_processes=1))
    runner.start()
    try:
        assert runner([boxed("x")])[0].reward != os.getpid()
    finally:
        runner.stop()


def test_in_a_process_even_what_holds_the_interpreter_is_given_up_and_counted():
    reward = FunctionReward(f"{MODULE}:backtracks", num_processes=1, timeout_s=0.5)
    runner = RewardRunner(reward, on_failure="zero")
    runner.start()
    try:
        results = runner([trajectory("fine"), trajectory("hang"), trajectory("fine")])
    finally:
        runner.stop()
    assert [result.reward for result in results] == [1.0, 0.0, 1.0]
    assert [result.parts["reward_timed_out"] for result in results] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("as_text", "functions:as_text must return a number or a RewardResult, got '0.5'"),
        ("not_a_number", "reward must be finite, got nan"),
        ("raises", "KeyError: 'q7'"),
    ],
)
def test_a_function_that_does_not_judge_is_an_error(function, message):
    with pytest.raises(RewardError, match=message):
        RewardRunner(FunctionReward(f"{MODULE}:{function}"))([boxed("x", prompt_id="q7")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": "length"}, "function must have the form package.module:name, got 'length'"),
        ({"function": f"{MODULE}:a.b"}, "function must have the form package.module:name"),
        ({"function": "nowhere:f"}, "function must be importable, got 'nowhere:f' .ModuleNotFoundError: No module"),
        ({"function": f"{MODULE}:f"}, "function must be importable, got 'tests.rewards.functions:f' .AttributeError"),
        (
            {"function": f"{MODULE}:NOT_CALLABLE"},
            "must be callable, and neither a class nor a coroutine function",
        ),
        ({"function": f"{MODULE}:later"}, "must be callable, and neither a class nor a coroutine function"),
        ({"function": f"{MODULE}:without_arguments"}, "function must take a trajectory and the options {}"),
        ({"function": f"{MODULE}:length", "options": {"size": 1}}, "options {'size': 1}, .*unexpected keyword"),
        ({"function": f"{MODULE}:length", "num_processes": -1}, "num_processes must not be negative, got -1"),
        ({"function": f"{MODULE}:length", "timeout_s": 0.0}, "timeout_s must be positive, got 0.0"),
        ({"function": f"{MODULE}:length", "memory_mb": 64}, "memory_mb must be at least 1024, .*, got 64"),
    ],
)
def test_a_function_that_cannot_work_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        FunctionReward(**options)
