"""Against real server processes: one of our own over its standard streams, one over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appo.tools import (
    TOOLS,
    MCPTools,
    TagSyntax,
    ToolArgumentError,
    ToolError,
    ToolRunner,
    ToolTimeoutError,
    ToolUnavailableError,
)

SERVER = [sys.executable, str(Path(__file__).with_name("server.py"))]
NAMES = ["shout", "add", "where", "header", "fail", "sleep", "die", "picture"]


class HttpServer:
    """A server process on a port of its own choice, which it keeps when it is started again."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def start(self) -> None:
        self.process = subprocess.Popen([*SERVER, str(self.port)], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def own_threads() -> set[threading.Thread]:
    """Ours: asyncio has threads that wait for child processes, and end soon after them."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("appo-")}


@pytest.fixture(scope="module")
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.kill()


@pytest.fixture
def started():
    """Starts tools; stops them after the test."""
    providers = []

    def start(**options) -> dict:
        providers.append(MCPTools(**options))
        providers[-1].start()
        return {tool.name: tool for tool in providers[-1].tools}

    yield start
    for provider in providers:
        provider.stop()


@pytest.fixture(scope="module", params=["stdio", "http"])
def tools(request, http_server) -> Iterator[dict]:
    options = {"command": SERVER} if request.param == "stdio" else {"url": http_server.url}
    provider = MCPTools(**options, timeout_s=20.0)
    provider.start()
    yield {tool.name: tool for tool in provider.tools}
    provider.stop()


def test_tools_appear_under_their_names_with_their_schemas(tools):
    assert list(tools) == NAMES
    function = tools["add"].schema["function"]
    assert (function["name"], function["description"]) == ("add", "Adds two numbers.")
    assert function["parameters"]["required"] == ["a"]
    assert function["parameters"]["properties"]["b"]["minimum"] == 0


def test_a_tool_with_one_text_parameter_takes_the_text_as_it_is(tools):
    assert tools["shout"]("{a}: 'b'") == "{A}: 'B'"
    assert tools["shout"].to_text({"text": " a "}) == " a "
    assert tools["shout"]("") == ""


def test_any_other_tool_takes_json(tools):
    assert tools["add"]('{"a": 1, "b": 2}') == "3"
    assert tools["add"](tools["add"].to_text({"a": 5})) == "6"
    assert json.loads(tools["where"](""))[0] != os.getpid()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("1 + 1", "Error: the arguments of add are no valid JSON: Extra data"),
        ("[1]", "Error: the arguments of add must be a JSON object"),
        ('{"b": 1}', "Error: add does not take such arguments: 'a' is a required property"),
        ('{"a": "x"}', "Error: add does not take such arguments: 'a': 'x' is not of type 'integer'"),
        ('{"a": 1, "b": -1}', "Error: add does not take such arguments: 'b': -1 is less than the minimum of 0"),
    ],
)
def test_arguments_that_do_not_fit_are_told_apart(tools, argument, message):
    with pytest.raises(ToolArgumentError) as caught:
        tools["add"](argument)
    assert str(caught.value).startswith(message)


def test_arguments_by_name_are_checked(tools):
    with pytest.raises(ToolArgumentError, match="'text' is a required property"):
        tools["shout"].to_text({"words": "a"})


def test_a_failure_of_the_tool_is_told_in_its_words(tools):
    with pytest.raises(ToolError, match="Error executing tool fail: no luck") as caught:
        tools["fail"]("no luck")
    assert caught.value.failure == "error"


def test_what_is_no_text_is_named(tools):
    assert tools["picture"]("") == "a dot:\n[image]"


def test_a_call_that_takes_too_long_is_given_up_and_the_next_one_answered(started, http_server):
    for options in ({"command": SERVER}, {"url": http_server.url}):
        tools = started(**options, timeout_s=0.3)
        with pytest.raises(ToolTimeoutError, match=r"Timed out after 0\.3 seconds\."):
            tools["sleep"]('{"seconds": 60}')
        tools["shout"].timeout_s = 20.0
        assert tools["shout"]("a") == "A"


def test_calls_run_side_by_side(tools):
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tools["sleep"], ['{"seconds": 1}'] * 8)) == ["slept 1 s"] * 8
    assert time.monotonic() - begun < 7.0


def test_a_server_that_dies_costs_the_call_and_is_started_again(started):
    tools = started(command=SERVER, timeout_s=20.0)
    first = json.loads(tools["where"](""))[0]
    with pytest.raises(ToolUnavailableError, match="the connection to the tool's server was lost"):
        tools["die"]("")
    second = json.loads(tools["where"](""))[0]
    assert second != first
    os.kill(second, signal.SIGKILL)
    with pytest.raises(ToolUnavailableError):
        tools["shout"]("a")
    assert tools["shout"]("a") == "A"


def test_a_server_that_hangs_costs_time_only(started):
    tools = started(command=SERVER, timeout_s=0.3)
    process = json.loads(tools["where"](""))[0]
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(ToolTimeoutError):
        tools["shout"]("a")
    os.kill(process, signal.SIGCONT)
    tools["shout"].timeout_s = 20.0
    assert tools["shout"]("a") == "A"


def test_a_server_that_is_out_of_reach_is_tried_again_with_growing_waits(started):
    server = HttpServer()
    # Long enough for the third call to come within it, on a machine that stalls.
    tools = started(url=server.url, timeout_s=20.0, reconnect_wait_s=2.0)
    server.kill()
    texts = []
    while "tried again" not in "".join(texts):
        with pytest.raises(ToolUnavailableError) as caught:
            tools["shout"]("a")
        texts.append(str(caught.value))
    assert texts[0] == "Error: the connection to the tool's server was lost."
    # Tried at once after the first failure; from the second on, calls fail without a try.
    assert texts[1].startswith("Error: the tool's server is out of reach: ")
    assert texts[2] == "Error: the tool's server is out of reach; it is tried again in 2 seconds."
    server.start()
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        try:
            assert tools["shout"]("a") == "A"
            break
        except ToolUnavailableError:
            continue
    else:
        pytest.fail("the server was never reached again")
    server.kill()


def test_stop_does_not_wait_for_a_server_that_does_not_answer():
    server = HttpServer()
    provider = MCPTools(url=server.url, timeout_s=600.0, start_timeout_s=600.0)
    provider.start()
    (shout, *_) = provider.tools
    server.kill()
    with pytest.raises(ToolUnavailableError):
        shout("a")
    with socket.create_server(("127.0.0.1", server.port)) as silent, ThreadPoolExecutor(1) as pool:
        call = pool.submit(shout, "a")
        connection, _ = silent.accept()
        begun = time.monotonic()
        provider.stop()
        assert time.monotonic() - begun < 8.0
        with pytest.raises(ToolUnavailableError, match="the tool was stopped"):
            call.result(30.0)
        connection.close()
    with pytest.raises(ToolUnavailableError, match="the tool was stopped"):
        shout("a")


def test_a_server_started_anew_is_found_under_its_address(started):
    server = HttpServer()
    tools = started(url=server.url, timeout_s=20.0)
    server.kill()
    server.start()
    answers = []
    for _ in range(3):
        try:
            answers.append(tools["shout"]("a"))
        except ToolUnavailableError as error:
            answers.append(error.failure)
    server.kill()
    # Whether the first call meets the old connection or a new one is the protocol's matter.
    assert answers[-1] == "A"


def test_a_server_sees_only_the_variables_that_are_meant_for_it(started, monkeypatch, tmp_path):
    monkeypatch.setenv("PASSED", "passed")
    monkeypatch.setenv("HIDDEN", "hidden")
    env = {"PLAIN": "plain", "PASSED": "{PASSED}"}
    tools = started(command=SERVER, env=env, folder=str(tmp_path), timeout_s=20.0)
    assert json.loads(tools["where"](""))[1:] == [str(tmp_path), "plain", "passed", None]


def test_headers_reach_the_server_and_secret_ones_come_from_the_environment(started, http_server, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    provider = {"url": http_server.url, "headers": {"x-team": "red", "x-token": "{TOKEN}"}}
    tools = started(**provider, timeout_s=20.0)
    assert (tools["header"]("x-team"), tools["header"]("x-token")) == ("red", "s3cret")


def test_only_tools_asked_for_are_offered_under_a_prefix(started):
    tools = started(command=SERVER, include=["add", "shout"], prefix="far_", timeout_s=20.0)
    assert list(tools) == ["far_add", "far_shout"]
    assert tools["far_shout"]("a") == "A"


def test_a_runner_calls_them_like_any_other_tool_and_leaves_no_process(tmp_path):
    others = own_threads()
    runner = ToolRunner([MCPTools(command=SERVER, timeout_s=20.0)])
    runner.start()
    assert [schema["function"]["name"] for schema in runner.schemas()] == NAMES
    (call,) = TagSyntax().parse('<add>{"a": 1}</add>', tuple(runner.tools), 9)
    runner.submit(0, call.tool, call.argument)
    runner.submit(1, "add", {"a": 2, "b": 3})
    runner.submit(2, "add", {"b": 3})
    runner.submit(3, "where", {})
    answers = {}
    while runner.num_in_flight:
        answers |= {answer.key: answer for answer in runner.finished(None)}
    assert [answers[key].text for key in (0, 1)] == ["2", "5"]
    assert answers[2].failure == "invalid"
    process = json.loads(answers[3].text)[0]
    os.kill(process, 0)
    runner.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert own_threads() <= others


def test_stop_fails_the_calls_in_flight_and_start_works_again():
    provider = MCPTools(command=SERVER, timeout_s=60.0)
    for _ in range(2):
        provider.start()
        provider.start()
        tools = {tool.name: tool for tool in provider.tools}
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(tools["sleep"], '{"seconds": 60}')
            # The server answers this one after it has received that one.
            assert tools["shout"]("a") == "A"
            provider.stop()
            provider.stop()
            with pytest.raises(ToolUnavailableError):
                call.result(30.0)
        assert provider.tools == ()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"command": ["/no/such/program"]}, ConnectionError, "the MCP server '/no/such/program' could not be started"),
        (
            {"command": [sys.executable, "-c", ""]},
            ConnectionError,
            "could not be started or reached: Connection closed",
        ),
        ({"url": "http://127.0.0.1:9/mcp"}, ConnectionError, "could not be started or reached: "),
        ({"command": SERVER, "include": ["nope"]}, ValueError, r"include must name tools of .*shout, .* got 'nope'"),
        ({"command": SERVER, "env": {"A": "{NOT_SET}"}}, ValueError, "env must name .* that are set, got {NOT_SET}"),
        (
            {"command": [sys.executable, "-c", "input(); input()"], "start_timeout_s": 1.0},
            ConnectionError,
            "could not be started or reached: no answer within 1 seconds",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_at_the_start(options, error, message):
    others = own_threads()
    provider = MCPTools(**options)
    with pytest.raises(error, match=message):
        provider.start()
    assert own_threads() <= others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"either command or url must be set, got \[\] and ''"),
        ({"command": ["x"], "url": "http://x"}, "either command or url must be set"),
        ({"url": "x"}, "url must begin with http:// or https://, got 'x'"),
        ({"command": ["x"], "timeout_s": 0.0}, "timeout_s must be positive and finite, got 0.0"),
        ({"command": ["x"], "start_timeout_s": float("inf")}, "start_timeout_s must be positive and finite, got inf"),
        ({"command": ["x"], "reconnect_wait_s": 0.0}, "reconnect_wait_s must be positive and finite, got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    assert TOOLS["MCPTools"] is MCPTools
    with pytest.raises(ValueError, match=message):
        MCPTools(**options)
