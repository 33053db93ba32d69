"""Servers that hang, answer garbage, die at a bad moment or come back with other weights, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from appo.engines import Request, VLLMServerEngine
from appo.engines.vllm_server import pool as pools
from appo.engines.vllm_server.pool import ServerPool, Weights
from tests.engines.tiny_policy import run

GENERATE, RELOAD = "/inference/v1/generate", "/collective_rpc"
BODY = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 2, "logprobs": 0}}

SERVED = {
    "model_config": {"max_model_len": 256, "dtype": "torch.float32", "logprobs_mode": "processed_logprobs"},
    "weight_transfer_config": {"backend": "gloo"},
}
"""What a server was started with."""

Reply = bytes | int | None
"""What a server says on the wire behind its headers, or the status alone; None closes the connection without a word."""


class FaultyServer:
    """Holds weights by name as a vLLM server does, and has something wrong with its first answers to one path.

    Args:
        path: where it is wrong.
        faults: what it does in place of its first answers there, in turn; each gets the right answer.
    """

    def __init__(self, path: str = "", *faults: Callable[[FaultyServer, dict[str, Any]], Reply]) -> None:
        self.path, self.faults = path, list(faults)
        self.weights = "default"
        self.world_size = 1
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.closing = threading.Event()

    def wait_for_answers(self, path: str, number: int) -> bool:
        """Until it has given some more right ones there."""
        given = threading.Event()

        def last(server: FaultyServer, answer: dict[str, Any]) -> Reply:
            given.set()
            return json.dumps(answer).encode()

        self.path, self.faults = path, [*(number - 1) * [lambda _, answer: json.dumps(answer).encode()], last]
        return given.wait(60)

    def right(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/update_weight_version":
            self.weights = body["new_version"]
        if path == "/finish_weight_update":
            self.weights = body.get("weight_version", self.weights)
        if path == GENERATE:
            return completion(self.weights)
        return {"weight_version": self.weights, "world_size": self.world_size, "vllm_config": SERVED}

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        self.asked.append(path)
        self.bodies.append(body)
        if path == self.path and self.faults:
            return self.faults.pop(0)(self, self.right(path, body))
        return json.dumps(self.right(path, body)).encode()


def completion(weights: str, **changes: Any) -> dict[str, Any]:
    choice = {
        "finish_reason": "length", "stop_reason": None, "token_ids": [8, 9],
        "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}, "weight_versions": [{"version": weights}],
    }  # fmt: skip
    return {"choices": [choice | changes]}


@contextmanager
def serving(server: FaultyServer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = server.reply(self.path.partition("?")[0], json.loads(body or b"{}"))
            if content is None:
                self.close_connection = True
                return
            status, content = (content, b"") if isinstance(content, int) else (200, content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 - named by the standard library

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        server.closing.set()
        http.shutdown()
        thread.join()


def ask(address: str, timeout_s: float = 10.0, recovery_s: float = 20.0) -> dict[str, Any]:
    """What comes of one request to a server that must have new weights before."""

    async def talk() -> dict[str, Any]:
        pool = ServerPool([address], {}, timeout_s, recovery_s, Weights("run-0", Path("/nowhere/0")))
        try:
            await pool.switch(Weights("run-1", Path("/nowhere/1")))
            return await pool.generate(BODY, b"")
        finally:
            await pool.close()

    return asyncio.run(talk())


def hang(server: FaultyServer, answer: dict[str, Any]) -> Reply:
    server.closing.wait()
    return None


def die(server: FaultyServer, answer: dict[str, Any]) -> Reply:
    """Closes the connection, and is another process when it is asked again: with the weights it started with."""
    server.weights = "default"
    return None


def say(**changes: Any) -> Callable[[FaultyServer, dict[str, Any]], Reply]:
    return lambda server, answer: json.dumps(completion(server.weights, **changes)).encode()


def forget(server: FaultyServer, answer: dict[str, Any]) -> Reply:
    """Samples with the weights it started with, though it had newer ones."""
    server.weights = "default"
    return json.dumps(completion("default")).encode()


GARBAGE = {
    "hang": hang,
    "die": die,
    "old weights": forget,
    "no JSON": lambda *_: b"<html>502 Bad Gateway</html>",
    "other JSON": lambda *_: b'{"detail": "moved"}',
    "a list": lambda *_: b"[]",
    "nothing sampled": say(token_ids=[], logprobs={"content": []}),
    "too few log-probs": say(logprobs={"content": [{"logprob": -1.0}]}),
    "NaN": say(logprobs={"content": [{"logprob": float("nan")}, {"logprob": -1.0}]}),
    "words": say(token_ids=["a", "b"]),
    "aborted": say(finish_reason="abort"),
}


@pytest.mark.parametrize("fault", GARBAGE)
def test_what_a_server_does_wrong_once_is_asked_again(fault):
    server = FaultyServer(GENERATE, GARBAGE[fault])
    with serving(server) as address:
        assert ask(address, timeout_s=1.0 if fault == "hang" else 10.0) == completion("run-1")
    assert not server.faults
    assert server.asked.count(GENERATE) == 2 or fault == "hang"
    # One that dies or forgets is brought to the weights again.
    assert server.asked.count(RELOAD) == 1 + (fault in ("die", "old weights")) or fault == "hang"


@pytest.mark.parametrize("fault", ["hang", "die"])
def test_weights_that_did_not_arrive_are_brought_again(fault):
    server = FaultyServer(RELOAD, GARBAGE[fault])
    with serving(server) as address:
        assert ask(address, timeout_s=1.0 if fault == "hang" else 10.0) == completion("run-1")
    assert not server.faults
    assert server.asked.count(RELOAD) >= 2


@pytest.mark.parametrize(
    ("path", "fault", "said"),
    [
        (GENERATE, "hang", "/inference/v1/generate was not answered in time"),
        (GENERATE, "other JSON", r"/inference/v1/generate answered otherwise than vLLM does \(KeyError: 'choices'\)"),
        (GENERATE, "NaN", r"answered otherwise than vLLM does \(ValueError: log-probs that are none\)"),
        (GENERATE, "old weights", "weights {'default'} sampled instead of 'run-1'"),
        ("/weight_info", "a list", "/weight_info answered otherwise than vLLM does"),
    ],
)
def test_a_server_that_is_always_wrong_ends_the_run_by_its_name(path, fault, said):
    with (
        serving(FaultyServer(path, *1000 * [GARBAGE[fault]])) as address,
        pytest.raises(ConnectionError, match=rf"no vLLM server has answered for 0.6 s \({address}: .*{said}"),
    ):
        ask(address, timeout_s=0.5, recovery_s=0.6)


def test_a_server_started_anew_gets_its_weights_from_the_process_that_brings_them_though_it_asks_nothing(monkeypatch):
    monkeypatch.setattr(pools, "_LOOK_S", 0.01)
    weights, server = Weights("run-0", Path("/nowhere/0")), FaultyServer()

    async def talk(address: str) -> dict[str, Any]:
        bringing, other = (ServerPool([address], {}, 10.0, 20.0, weights, brings) for brings in (True, False))
        await bringing.switch(weights)
        await other.switch(weights)
        server.weights, server.path, server.faults = "default", "/weight_info", [lambda *_: 404]
        keeper = asyncio.create_task(bringing.keep())
        while server.faults:  # what it refuses before all of it is there ends nothing
            await asyncio.sleep(0.01)
        answer = await other.generate(BODY, b"")
        keeper.cancel()
        await asyncio.gather(bringing.close(), other.close())
        return answer

    with serving(server) as address:
        assert asyncio.run(talk(address)) == completion("run-0")
    # Once for each start of the server.
    assert server.asked.count(RELOAD) == 2


def test_the_addresses_are_named_when_no_server_is_left(policies):
    with serving(FaultyServer(GENERATE, *1000 * [die])) as address:
        engine = VLLMServerEngine([address], recovery_timeout_s=0.5)
        engine.start(policies["llama"])
        engine.submit(Request(0, (5, 6), max_tokens=3))
        with pytest.raises(ConnectionError, match=rf"no vLLM server has answered for 0.5 s \({address}: "):
            run(engine, [])
        engine.stop()


def test_an_address_where_something_else_listens_is_named_at_the_start(policies):
    with (
        serving(FaultyServer("/server_info", *100 * [GARBAGE["other JSON"]])) as address,
        pytest.raises(ConnectionError, match=f"no vLLM server at {address} within 0.1 s: /server_info"),
    ):
        VLLMServerEngine([address], start_timeout_s=0.1).start(policies["llama"])
