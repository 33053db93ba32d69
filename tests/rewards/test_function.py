"""A user's function as a reward, in threads and in processes."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

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
        (result,) = runner([trajectory("abc")])
        assert result.reward != os.getpid()
        assert (result.parts["length"], result.reason, result.answer) == (3.0, "counted", "7")
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


def leveled(text: str, level: int | None) -> Trajectory:
    """A response to a question whose row has a level."""
    made = trajectory(text)
    return replace(made, prompt=replace(made.prompt, columns={"level": level, "other": "o"}))


def test_parameters_are_fields_of_the_row():
    reward = FunctionReward(f"{MODULE}:easier", {"bonus": 0.5})
    assert reward.columns == {"level"}
    assert reward(leveled("a", 2)).reward == 2.5
    # An option goes before a field, and a field before a default.
    assert FunctionReward(f"{MODULE}:easier", {"level": 7})(leveled("a", 2)).reward == 7.0
    assert CompositeReward({"length": FunctionReward(f"{MODULE}:length"), "level": reward}).columns == {"level"}
    with pytest.raises(
        TypeError, match=r"easier needs the column 'level', which data.source.columns must list, got none"
    ):
        reward(trajectory("a"))


def test_a_function_of_many_is_called_with_lists():
    seen: list[int] = []

    def many(trajectories, completions, answers, level):
        seen.append(len(trajectories))
        return [float(len(c)) + n + len(a) for c, n, a in zip(completions, level, answers, strict=True)]

    reward = FunctionReward(many, batch_size=2)
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    results = RewardRunner(reward)([leveled(text, 10 * i) for i, text in enumerate(texts)])
    assert [result.reward for result in results] == [2.0, 13.0, 24.0, 35.0, 46.0]
    assert seen == [2, 2, 1]
    # Those of groups that wait go together.
    seen.clear()
    runner = RewardRunner(reward)
    queue = runner.queue(2)
    groups = [queue.submit([leveled(text, 10 * i)]) for i, text in enumerate(texts)]
    assert sorted(queue.finished(None)) == groups
    assert [queue.take(group)[0].reward for group in groups] == [2.0, 13.0, 24.0, 35.0, 46.0]
    assert seen == [1, 2, 2]
    queue.close()
    # By itself, as a part of a sum beside others that score one by one.
    seen.clear()
    whole = CompositeReward({"many": FunctionReward(many), "length": FunctionReward(f"{MODULE}:length")})
    assert [r.reward for r in RewardRunner(whole)([leveled(text, 0) for text in texts])] == [3.0, 5.0, 7.0, 9.0, 11.0]
    assert seen == [5]


@pytest.mark.parametrize("num_processes", [0, 1])
def test_a_function_of_another_trainer_is_a_reward_as_it_is(num_processes, caplog):
    reward = FunctionReward(f"{MODULE}:all_at_once", {"scale": 2.0}, num_processes=num_processes)
    runner = RewardRunner(reward, on_failure="zero")
    runner.start()
    try:
        results = runner([leveled("a", 1), leveled("-", 2), leveled("bad", 3)])
    finally:
        runner.stop()
    assert "a batch of 3 was not scored (" in caplog.text
    # One that fails fails alone; a value that is None adds nothing.
    assert [result.reward for result in results] == [2.0, 0.0, 0.0]
    assert [result.parts["reward_failed"] for result in results] == [0.0, 0.0, 1.0]


def test_a_batch_that_takes_too_long_is_given_up():
    runner = RewardRunner(FunctionReward(f"{MODULE}:hangs_together", batch_size=2), timeout_s=0.2, on_failure="zero")
    results = runner([trajectory(text) for text in "abc"])
    assert [result.parts["reward_timed_out"] for result in results] == [1.0, 1.0, 0.0]
    runner = RewardRunner(FunctionReward(f"{MODULE}:hangs_together"), timeout_s=0.2)
    with pytest.raises(RewardError, match=r"a batch of 3 took longer than rollout.rewards.timeout_s = 0.2"):
        runner([trajectory(text) for text in "abc"])


def test_a_function_of_many_returns_as_many_values():
    with pytest.raises(RewardError, match=r"must return a value a trajectory, 1, got 0.5"):
        RewardRunner(FunctionReward(lambda completions: 0.5))([trajectory("a")])
    with pytest.raises(TypeError, match=r"too_few must return a value a trajectory, 2, got \[0.0\]"):
        FunctionReward(f"{MODULE}:too_few").score_ahead([trajectory("a"), trajectory("b")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": f"{MODULE}:too_few", "batch_size": 0}, "batch_size must be positive, got 0"),
        ({"function": f"{MODULE}:too_few", "num_processes": 2}, "num_processes must be 0 or 1 for a function of many"),
        ({"function": f"{MODULE}:too_few", "options": {"level": 1}}, "options {'level': 1}, .*unexpected keyword"),
    ],
)
def test_options_of_a_function_of_many_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        FunctionReward(**options)
