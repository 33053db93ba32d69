"""Functions in processes: nothing that one call does reaches the caller or the next call."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from appo.core.trajectory import BranchPoint, Trajectory
from appo.workers.processes import ProcessError, ProcessLostError, ProcessPool, ProcessTimeoutError
from tests.rewards.responses import trajectory

MODULE = "tests.workers.plain_functions"
HANGS = "a" * 60 + "b"


@pytest.fixture
def make_pool() -> Iterator:
    pools = []

    def make(name: str, num_processes: int = 1, memory_mb: int = 8192, module: str = MODULE) -> ProcessPool:
        pools.append(ProcessPool(f"{module}:{name}", num_processes, memory_mb))
        pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop()


def is_alive(process_id: float) -> bool:
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    return True


def test_a_call_runs_in_another_process_that_stays(make_pool):
    pool = make_pool("process_id")
    first = pool.call(30.0, "x")
    assert first != os.getpid()
    assert pool.call(30.0, "x") == first


def test_a_branch_arrives_with_its_parent_and_its_tensors(make_pool):
    parent = trajectory("abc", num_sampled=5)
    tensors = {name: getattr(parent, name) for name in ("behavior_log_probs", "policy_versions", "response_mask")}
    branch = Trajectory(
        parent.prompt, parent.token_ids, segments=parent.segments, tool_calls=(), finish_reason="eos",
        origin=BranchPoint(parent, 2, 0.5), **tensors,
    )  # fmt: skip
    result = make_pool("parent_length", module="tests.rewards.functions").call(30.0, branch)
    assert result == {"reward": 6.0, "parts": {"tokens": 15.0}, "reason": "counted", "answer": None}


def test_options_are_passed_by_name(make_pool):
    assert make_pool("repeat").call(30.0, "ab", times=2) == "abab"


def test_values_come_as_plain_data(make_pool):
    assert make_pool("several").call(30.0, "é") == [1, True, None, 0.5, "é", {"a": [1, 2]}]
    with pytest.raises(ProcessError, match=r"raised TypeError: a process must return numbers, texts, .* got object"):
        make_pool("unspeakable").call(30.0, "x")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a pickle", "sent no answer"),
        ("a text that is no answer", "sent no answer"),
        ("nested JSON", "sent no answer"),
        ("more than there is room for", f"sent a message of {2**60} bytes"),
        ("the half of an answer", "took longer than 0.5 s"),
    ],
)
def test_a_process_that_was_taken_over_cannot_take_its_caller_over(make_pool, tmp_path, what, message):
    pool = make_pool("speak")
    path = tmp_path / "taken_over"
    assert pool.call(30.0, "nothing", str(path)) == "nothing"
    with pytest.raises(ProcessError, match=message):
        pool.call(0.5 if "half" in what else 30.0, what, str(path))
    assert not path.exists()
    # Another process stands in for it.
    assert pool.call(30.0, "nothing", str(path)) == "nothing"


def test_an_operation_that_no_thread_could_interrupt_is_killed_and_the_next_call_works(make_pool):
    pool = make_pool("backtracks")
    assert pool.call(30.0, "aaa")
    begin = time.monotonic()
    with pytest.raises(ProcessTimeoutError, match=r"functions:backtracks took longer than 0\.5 s"):
        pool.call(0.5, HANGS)
    assert time.monotonic() - begin < 10.0
    assert pool.call(30.0, "aaa")


def test_a_call_that_ends_its_process_is_an_error_and_the_next_call_works(make_pool):
    pool = make_pool("dies")
    for _ in range(2):
        with pytest.raises(ProcessLostError, match="functions:dies died"):
            pool.call(30.0, "x")


def test_what_a_call_raises_is_told(make_pool):
    pool = make_pool("raises")
    with pytest.raises(ProcessError, match="functions:raises raised KeyError: 'q7'"):
        pool.call(30.0, "q7")
    with pytest.raises(ProcessError, match="functions:exits raised SystemExit: 3"):
        make_pool("exits").call(30.0, "x")


def test_memory_is_limited(make_pool):
    assert make_pool("take_bytes").call(30.0, 2**30) == 2**30
    with pytest.raises(ProcessError, match="raised MemoryError"):
        make_pool("take_bytes", memory_mb=512).call(30.0, 2**30)


def test_calls_run_beside_one_another(make_pool):
    pool = make_pool("process_id", num_processes=2)
    seen: list[float] = []
    threads = [threading.Thread(target=lambda: seen.append(pool.call(30.0, "x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 8
    assert len(set(seen)) <= 2


def test_what_cannot_be_imported_is_told_at_the_start(make_pool):
    with pytest.raises(ProcessError, match=r"nowhere:f cannot be imported:\n(.*\n)*ModuleNotFoundError: No"):
        make_pool("f", module="nowhere")


def test_stopping_ends_the_processes(make_pool):
    pool = make_pool("process_id")
    process_id = pool.call(30.0, "x")
    pool.stop()
    assert not is_alive(process_id)
    with pytest.raises(ProcessError, match="must be started first"):
        pool.call(30.0, "x")


def test_a_stopped_pool_can_be_started_again(make_pool):
    pool = make_pool("process_id")
    pool.stop()
    pool.start()
    assert pool.call(30.0, "x") != os.getpid()


def test_stopping_ends_calls_in_flight_and_those_that_wait(make_pool):
    pool = make_pool("backtracks")
    errors: list[Exception] = []

    def call() -> None:
        try:
            pool.call(60.0, HANGS)
        except ProcessError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    pool.stop()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 3


def test_processes_end_with_a_caller_that_was_killed():
    code = (
        "import sys; from appo.workers.processes import ProcessPool\n"
        "pool = ProcessPool('os:getpid', 2, 4096); pool.start(); print(pool.call(9.0), flush=True); sys.stdin.read()"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    process = os.pidfd_open(int(caller.stdout.readline()))
    ended = select.poll()
    ended.register(process, select.POLLIN)
    assert not ended.poll(0)
    caller.kill()
    caller.communicate()
    assert ended.poll(20_000)
    os.close(process)
