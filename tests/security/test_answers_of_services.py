"""A service that is asked takes neither memory nor time beyond a limit, whatever it answers."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import httpx
import pytest

from appo.engines.vllm_server.answers import ServerError
from appo.engines.vllm_server.server import Server
from appo.rewards import JudgeReward, RewardError
from appo.tools import HTTPSearch, MCPTools
from appo.tools.base import ToolError
from appo.workers.http import BadAnswerError, HTTPCaller
from appo.workers.retries import StoppedError
from tests.rewards.responses import boxed
from tests.security.bombs import answering, completion, gzipped_twice, nested, zstd

MOST_MEMORY = 32 * 2**20
PACKED = [("gzip, gzip", gzipped_twice), ("zstd", zstd), ("x-of-its-own", zstd)]
IDS = [coding for coding, _ in PACKED]


def search(address: str) -> None:
    backend = HTTPSearch(address, max_attempts=1, request_timeout_s=0.4, timeout_s=0.4)
    backend.start()
    try:
        backend.search("x", 1)
    finally:
        backend.stop()


def judge(address: str) -> None:
    reward = JudgeReward("judge", address, max_attempts=1, timeout_s=0.4)
    reward.start()
    try:
        reward(boxed("Rome"))
    finally:
        reward.stop()


def server(address: str) -> None:
    async def call() -> None:
        async with httpx.AsyncClient(base_url=address) as client:
            await Server(address, client, timeout_s=0.4).call("POST", "/inference/v1/generate", {})

    asyncio.run(call())


def mcp(address: str) -> None:
    provider = MCPTools(url=address, timeout_s=0.4, start_timeout_s=0.4)
    try:
        provider.start()
    finally:
        provider.stop()


FAILURES = {search: ToolError, judge: RewardError, server: (ServerError, ValueError), mcp: ConnectionError}
ASKING = pytest.mark.parametrize("ask", FAILURES, ids=lambda function: function.__name__)


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """The most that was held since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@ASKING
@pytest.mark.parametrize(("coding", "bomb"), PACKED, ids=IDS)
@pytest.mark.parametrize("status", [200, 400, 503])
def test_what_is_packed_stays_packed(ask, coding, bomb, status, memory):
    body = bomb()
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    tracemalloc.reset_peak()
    with answering(status, headers, body) as (address, requests):
        with pytest.raises(FAILURES[ask]):
            ask(address)
        assert requests.get(timeout=5.0)["accept-encoding"] == "identity"
    assert memory() < MOST_MEMORY


@ASKING
def test_json_that_is_too_deep_is_a_failure_like_another(ask):
    with (
        answering(200, {"Content-Type": "application/json"}, nested(100_000)) as (address, _),
        pytest.raises(FAILURES[ask]),
    ):
        ask(address)


@ASKING
@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"[1" * 40, b"1" * 9000])
def test_what_is_no_answer_is_a_failure_like_another(ask, body):
    with answering(200, {"Content-Type": "application/json"}, body) as (address, _), pytest.raises(FAILURES[ask]):
        ask(address)


@ASKING
def test_a_head_that_drips_ends_at_the_deadline(ask):
    started = time.monotonic()
    with answering(200, {}, completion("CORRECT"), pause_s=0.05) as (address, _), pytest.raises(FAILURES[ask]):
        ask(address)
    assert time.monotonic() - started < 3.0


@pytest.fixture
def caller() -> Iterator[HTTPCaller]:
    caller = HTTPCaller("test", {})
    yield caller
    caller.close()


@pytest.mark.parametrize("length", [{}, {"Content-Length": str(2**40)}])
def test_an_answer_beyond_the_limit_is_left(caller, length):
    with (
        answering(200, length, b"x" * 5000) as (address, _),
        pytest.raises(BadAnswerError, match="the answer has more than"),
    ):
        caller.ask("GET", address, timeout_s=5.0, max_bytes=4999)
    with answering(200, {}, b"x" * 5000) as (address, _):
        assert len(caller.ask("GET", address, timeout_s=5.0, max_bytes=5000).body) == 5000


def test_of_a_refusal_the_beginning_is_read(caller):
    with answering(400, {}, b"x" * 10**6) as (address, _):
        assert caller.ask("GET", address, timeout_s=5.0, max_bytes=10).body == b"x" * 4096


def test_who_is_closed_answers_nobody_and_leaves_nobody_waiting(caller):
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            caller.ask("GET", address, timeout_s=60.0, max_bytes=10)
        except StoppedError as error:
            failures.append(error)

    with answering(200, {}, b"x", pause_s=5.0) as (address, requests):
        thread = threading.Thread(target=ask)
        thread.start()
        requests.get(timeout=5.0)
        caller.close()
        thread.join(timeout=5.0)
        ask()
    assert len(failures) == 2
