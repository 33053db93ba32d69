"""Trajectories in, results out, in order and in time, whatever the reward does."""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import AnswerReward, Reward, RewardError, RewardRunner, RewardTimeoutError
from tests.rewards.responses import trajectory


@dataclass(eq=False)
class Calls(Reward):
    """What a function of the trajectory's text returns; remembers who called it and when it was started."""

    function: Callable[[str], RewardResult]
    parallel: int | None = None
    threads: list[threading.Thread] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        self.threads.append(threading.current_thread())
        return self.function(trajectory.text)

    @property
    def max_parallel(self) -> int | None:
        return self.parallel

    def start(self) -> None:
        self.events.append("start")

    def stop(self) -> None:
        self.events.append("stop")


def number(text: str) -> RewardResult:
    return RewardResult(float(text), {"accuracy": float(text), "half": 0.5})


def numbered(count: int) -> list[Trajectory]:
    return [trajectory(str(i), prompt_id=f"q{i}") for i in range(count)]


@pytest.fixture
def hang():
    """Waits until the test is over; threads that it holds end then."""
    released = threading.Event()
    yield released.wait
    released.set()


@pytest.mark.parametrize("num_workers", [1, 3, 50])
def test_results_come_in_the_order_of_the_trajectories(num_workers):
    reward = Calls(number)
    results = RewardRunner(reward, num_workers)(numbered(20))
    assert [result.reward for result in results] == list(range(20))
    assert len({thread.ident for thread in reward.threads}) <= num_workers


def test_results_come_in_order_even_if_the_last_one_is_there_first():
    done = [threading.Event() for _ in range(8)]

    def after_the_next(text: str) -> RewardResult:
        if int(text) < 7:
            assert done[int(text) + 1].wait(20)
        done[int(text)].set()
        return number(text)

    assert [result.reward for result in RewardRunner(Calls(after_the_next), 8)(numbered(8))] == list(range(8))


def test_permuted_trajectories_have_permuted_results():
    trajectories = numbered(9)
    runner = RewardRunner(Calls(number), 4)
    assert runner(trajectories[::-1]) == runner(trajectories)[::-1]


def test_a_queue_forgets_what_it_hands_out():
    queue = RewardRunner(Calls(number)).queue(1)
    first, second = numbered(2), numbered(9)
    groups = [queue.submit(first), queue.submit(second)]
    assert sorted(queue.finished(None)) == groups
    assert [result.reward for result in queue.take(groups[1])] == list(range(9))
    left = [weakref.ref(each) for each in second]
    del second
    # A thread holds what it has called last.
    assert sum(each() is not None for each in left) <= 1
    assert len(queue.take(groups[0])) == len(first)
    queue.close()


def test_no_trajectories_have_no_results():
    assert RewardRunner(Calls(number))([]) == []


def test_no_call_is_made_on_the_main_thread():
    reward = Calls(number)
    RewardRunner(reward)(numbered(5))
    assert threading.main_thread() not in reward.threads


def test_as_many_are_scored_at_once_as_there_are_workers():
    together = threading.Barrier(4, timeout=20)
    RewardRunner(Calls(lambda text: together.wait() * 0 or number(text)), 4)(numbered(4))


def test_a_reward_may_ask_for_fewer_at_once():
    running, counts, lock = 0, [], threading.Lock()
    pair = threading.Barrier(2, timeout=20)

    def count(text: str) -> RewardResult:
        nonlocal running
        with lock:
            running += 1
            counts.append(running)
        pair.wait()
        with lock:
            running -= 1
        return number(text)

    RewardRunner(Calls(count, parallel=2), 8)(numbered(12))
    assert max(counts) == 2


def test_the_reward_is_started_and_stopped():
    reward = Calls(number)
    runner = RewardRunner(reward)
    runner.start()
    runner.stop()
    assert reward.events == ["start", "stop"]


def fail_on_2(text: str) -> RewardResult:
    if text == "2":
        raise KeyError("no such page")
    return number(text)


def test_a_failure_ends_the_call_and_names_the_trajectory():
    message = r"Calls failed on trajectory 3 of 4, of prompt 'q2' \(KeyError: 'no such page'\); rollout\.rewards\.on_f"
    with pytest.raises(RewardError, match=message) as error:
        RewardRunner(Calls(fail_on_2), 1)(numbered(4))
    assert isinstance(error.value.__cause__, KeyError)


def test_after_a_failure_no_further_trajectory_is_begun():
    reward = Calls(fail_on_2)
    with pytest.raises(RewardError):
        RewardRunner(reward, 1)(numbered(9))
    assert len(reward.threads) == 3


def test_a_failure_does_not_wait_for_a_trajectory_that_hangs(hang):
    begun = threading.Event()

    def fail_beside_one_that_hangs(text: str) -> RewardResult:
        if text == "0":
            begun.set()
            hang()
        begun.wait(20)
        return fail_on_2("2")

    with pytest.raises(RewardError, match="of prompt 'q1'"):
        RewardRunner(Calls(fail_beside_one_that_hangs), 2)(numbered(2))


def test_a_failure_may_count_as_zero_instead(caplog):
    results = RewardRunner(Calls(fail_on_2), 3, on_failure="zero")(numbered(4))
    assert [result.reward for result in results] == [0.0, 1.0, 0.0, 3.0]
    # Every result has every part, so that means are over all trajectories.
    assert results[2].parts == {"accuracy": 0.0, "half": 0.0, "reward_failed": 1.0, "reward_timed_out": 0.0}
    assert results[3].parts == {"accuracy": 3.0, "half": 0.5, "reward_failed": 0.0, "reward_timed_out": 0.0}
    assert results[2].reason == "not scored: KeyError: 'no such page'"
    assert "Calls failed on trajectory 3 of 4, of prompt 'q2' (KeyError: 'no such page')" in caplog.text


@pytest.mark.parametrize("on_failure", ["error", "zero"])
def test_a_failure_on_a_prompt_that_is_not_public_does_not_say_what_was_written(caplog, on_failure):
    def quote(text: str) -> RewardResult:
        raise ValueError(f"cannot judge {text}")

    shown = trajectory("CANARY")
    runner = RewardRunner(Calls(quote), on_failure=on_failure)
    hidden = replace(shown, prompt=replace(shown.prompt, is_public=False))
    text = ""
    try:
        runner([hidden])
    except RewardError as error:
        text = "".join(traceback.format_exception(error))
    assert "of prompt 'p' (ValueError)" in text + caplog.text
    assert "CANARY" not in text + caplog.text


def test_failures_of_one_kind_are_logged_once(caplog):
    runner = RewardRunner(Calls(fail_on_2), on_failure="zero")
    runner(numbered(4))
    runner(numbered(4))
    assert caplog.text.count("Calls failed") == 1


def test_if_nothing_can_be_scored_the_accuracy_is_zero():
    (result,) = RewardRunner(Calls(lambda text: fail_on_2("2")), on_failure="zero")(numbered(1))
    assert result.parts == {"accuracy": 0.0, "reward_failed": 1.0, "reward_timed_out": 0.0}


@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_a_trajectory_that_hangs_is_given_up_and_counted_while_the_others_are_scored(hang, num_workers):
    reward = Calls(lambda text: hang() if text in ("1", "4") else number(text))
    results = RewardRunner(reward, num_workers, timeout_s=0.3, on_failure="zero")(numbered(7))
    assert [result.reward for result in results] == [0.0, 0.0, 2.0, 3.0, 0.0, 5.0, 6.0]
    assert [result.parts["reward_timed_out"] for result in results] == [0, 1, 0, 0, 1, 0, 0]
    assert "took longer than rollout.rewards.timeout_s = 0.3" in results[1].reason


def test_a_trajectory_that_hangs_is_an_error_that_names_it(hang):
    reward = Calls(lambda text: hang() if text == "1" else number(text))
    with pytest.raises(
        RewardError, match=r"trajectory 2 of 3, of prompt 'q1' \(RewardTimeoutError: took longer"
    ) as error:
        RewardRunner(reward, timeout_s=0.2)(numbered(3))
    assert isinstance(error.value.__cause__, RewardTimeoutError)


def test_the_limit_is_that_of_one_trajectory_not_of_all(hang):
    begin = time.monotonic()
    assert len(RewardRunner(Calls(lambda text: hang(0.1) or number(text)), 1, timeout_s=1.0)(numbered(12))) == 12
    assert time.monotonic() - begin > 1.0


def test_there_may_be_no_limit():
    assert len(RewardRunner(Calls(number), timeout_s=float("inf"))(numbered(3))) == 3


def test_a_reward_that_exits_does_not_hang_the_run():
    def leave(text: str) -> RewardResult:
        raise SystemExit(1)

    with pytest.raises(RewardError, match="SystemExit"):
        RewardRunner(Calls(leave))(numbered(2))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (RewardResult(float("nan")), "reward must be finite, got nan"),
        (RewardResult(0.0, {"f1": float("inf")}), "f1 must be finite, got inf"),
        (0.5, "a reward must return a RewardResult, got float"),
    ],
)
def test_what_cannot_be_trained_on_is_a_failure(result, message):
    with pytest.raises(RewardError, match=message):
        RewardRunner(Calls(lambda text: result))(numbered(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "rollout.rewards.workers must be positive, got 0"),
        ({"timeout_s": 0.0}, "rollout.rewards.timeout_s must be positive, got 0.0"),
        ({"on_failure": "ignore"}, "rollout.rewards.on_failure must be error or zero, got 'ignore'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RewardRunner(AnswerReward(), **options)
