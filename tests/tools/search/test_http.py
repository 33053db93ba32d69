from __future__ import annotations

import itertools
import logging
import socket
import threading
import time

import pytest

from appo.tools import HTTPSearch, SearchTool, ToolError, ToolRunner, ToolTimeoutError
from tests.tools.search.endpoint import Reply, endpoint

FOUND = Reply({"results": [{"text": "Rome is old."}, {"text": "Rome is in Italy."}]})


@pytest.fixture
def search():
    """Asks an endpoint with the replies given, the last of them ever again; returns the back end and what came in."""
    with_cleanup = []

    def start(*replies, **options):
        serving = endpoint(lambda number, _: replies[min(number, len(replies) - 1)])
        served = serving.__enter__()
        backend = HTTPSearch(options.pop("url", served.url), **{"first_pause_s": 0.01, **options})
        backend.start()
        with_cleanup.append((backend, serving))
        return backend, served.received

    yield start
    for backend, serving in with_cleanup:
        backend.stop()
        serving.__exit__(None, None, None)


def test_a_query_goes_into_the_url(search):
    backend, received = search(FOUND, limit_field="num", fields={"lang": "en"})
    assert backend.search("Rome & Ruin?", 2) == ["Rome is old.", "Rome is in Italy."]
    assert backend.search("Rome", 1) == ["Rome is old."]
    assert [(request.method, request.path) for request in received] == [("GET", "/search")] * 2
    assert received[0].fields == {"q": "Rome & Ruin?", "num": "2", "lang": "en"}


def test_a_query_goes_into_a_json_object(search):
    backend, received = search(
        FOUND, method="POST", query_field="input.query", limit_field="input.k", fields={"input": {"lang": "en"}, "v": 2}
    )
    backend.search("Rome", 2)
    backend.search("Oslo", 3)
    assert received[0].method == "POST"
    assert received[0].fields == {"input": {"lang": "en", "query": "Rome", "k": 2}, "v": 2}
    assert received[1].fields == {"input": {"lang": "en", "query": "Oslo", "k": 3}, "v": 2}


def test_passages_are_made_of_the_fields_named(search):
    results = [
        {"doc": {"snippet": " Old. "}, "name": "Rome", "link": "http://r"},
        {"doc": {"snippet": ""}, "name": "Empty"},
        {"doc": {}, "name": "Nothing"},
        {"doc": {"snippet": "Cold."}, "name": None},
        {"doc": {"snippet": "Cold."}},
        "odd",
    ]
    backend, _ = search(
        Reply({"data": {"organic": results}}),
        results_field="data.organic",
        text_field="doc.snippet",
        title_field="name",
        url_field="link",
    )
    assert backend.search("x", 10) == ["Rome: Old. (http://r)", "Cold."]


def test_an_answer_may_be_a_list_of_texts(search):
    backend, _ = search(Reply(["a", "b", "a"]), results_field="", text_field="")
    assert backend.search("x", 10) == ["a", "b"]


def test_an_answer_without_the_list_is_a_failure_unless_it_means_no_results(search):
    backend, _ = search(Reply({"error": "x"}))
    with pytest.raises(ToolError, match=r"The search failed: the answer has no list in 'results'\."):
        backend.search("x", 3)
    backend, _ = search(Reply({"organic": []}), results_optional=True)
    assert backend.search("x", 3) == []
    backend, _ = search(Reply({"results": "many"}), results_optional=True)
    with pytest.raises(ToolError, match="the answer has no list in 'results'"):
        backend.search("x", 3)


def test_an_answer_that_is_not_json_is_a_failure(search):
    backend, received = search(Reply(body=b"<html>"))
    with pytest.raises(ToolError, match=r"The search failed: the answer is not JSON\."):
        backend.search("x", 3)
    assert len(received) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(search, status):
    backend, received = search(Reply(status=status), Reply(status=status), FOUND)
    assert backend.search("Rome", 1) == ["Rome is old."]
    assert len(received) == 3


def test_attempts_end(search):
    backend, received = search(Reply(status=503), max_attempts=2)
    with pytest.raises(ToolError, match=r"The search failed after 2 attempts: status 503 Service Unavailable\."):
        backend.search("x", 3)
    assert len(received) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 422])
def test_a_lasting_failure_is_not_tried_again(search, status):
    backend, received = search(Reply(status=status, headers={"Location": "/elsewhere"}))
    with pytest.raises(ToolError, match=f"The search failed: status {status} "):
        backend.search("x", 3)
    assert len(received) == 1


def test_pauses_grow(search):
    backend, received = search(Reply(status=500), max_attempts=4, first_pause_s=0.1)
    with pytest.raises(ToolError):
        backend.search("x", 3)
    pauses = [later.at - earlier.at for earlier, later in itertools.pairwise(received)]
    # At least half of 0.1, 0.2 and 0.4 seconds.
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True))


def test_a_server_that_asks_to_wait_is_left_alone_by_all_threads(search):
    backend, received = search(Reply(status=429, headers={"Retry-After": "1"}), FOUND)
    assert backend.search("Rome", 1) == ["Rome is old."]
    assert received[1].at - received[0].at >= 1.0


def test_a_server_that_asks_to_wait_for_too_long_ends_the_search(search):
    backend, received = search(Reply(status=429, headers={"Retry-After": "3600"}), timeout_s=5.0)
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(ToolTimeoutError, match="the service takes no more searches for now"):
            backend.search("x", 3)
    assert time.monotonic() - start < 4.0
    assert len(received) == 1


def test_threads_share_the_rate(search):
    backend, received = search(FOUND, requests_per_s=20.0)
    threads = [threading.Thread(target=backend.search, args=("Rome", 1)) for _ in range(6)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(received) == 6
    # Five intervals of 0.05 seconds lie before the last; a busy machine may hold the first one back.
    assert max(r.at for r in received) - begin >= 0.25


@pytest.mark.parametrize("slow", [Reply({}, hangs=True), Reply(body=b"x" * 1000, drips=True)], ids=["hangs", "drips"])
def test_a_server_that_does_not_answer_in_time_is_a_timeout(search, slow):
    # A request that a busy machine has not delivered within its time is made all the same.
    backend, received = search(slow, request_timeout_s=0.5, max_attempts=2)
    start = time.monotonic()
    with pytest.raises(ToolTimeoutError, match=r"The search failed after 2 attempts: no answer in time\."):
        backend.search("x", 3)
    assert time.monotonic() - start < 10.0
    assert 1 <= len(received) <= 2


def test_a_search_ends_with_its_own_time_limit(search):
    backend, received = search(Reply({}, hangs=True), request_timeout_s=20.0, timeout_s=0.3, max_attempts=50)
    start = time.monotonic()
    with pytest.raises(ToolTimeoutError):
        backend.search("x", 3)
    assert time.monotonic() - start < 5.0
    assert len(received) == 1


def closed_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def test_a_service_that_is_not_there_is_a_failure_of_the_call_and_the_run_goes_on(search):
    backend, _ = search(FOUND, url=closed_url(), max_attempts=2)
    runner = ToolRunner([SearchTool(backend)])
    runner.start()
    for key in range(3):
        runner.submit(key, "search", "Rome")
    answers = []
    while runner.num_in_flight:
        answers += runner.finished(None)
    runner.stop()
    assert [answer.failure for answer in answers] == ["error"] * 3
    assert {answer.text for answer in answers} == {"The search failed after 2 attempts: no answer (ConnectError)."}


def test_keys_come_from_the_environment_and_are_shown_nowhere(search, monkeypatch, caplog):
    monkeypatch.setenv("TEST_SEARCH_KEY", "s3cr3t-key\n")
    caplog.set_level(logging.DEBUG, logger="appo")
    caplog.set_level(logging.INFO)
    backend, received = search(
        Reply(status=401),
        headers={"Authorization": "Bearer {TEST_SEARCH_KEY}", "Accept-Language": "en"},
        fields={"api_key": "{TEST_SEARCH_KEY}", "format": "{0}"},
    )
    with pytest.raises(ToolError) as caught:
        backend.search("x", 3)
    assert received[0].headers["Authorization"] == "Bearer s3cr3t-key"
    assert received[0].fields == {"api_key": "s3cr3t-key", "format": "{0}", "q": "x"}
    for shown in (repr(backend), backend.identity, str(caught.value), repr(caught.value.__cause__), caplog.text):
        assert "s3cr3t" not in shown


def test_a_key_that_no_header_can_hold_is_not_shown_either(search, monkeypatch, caplog):
    monkeypatch.setenv("TEST_SEARCH_KEY", "s3cr3t\nkey")
    backend, _ = search(FOUND, headers={"X-Api-Key": "{TEST_SEARCH_KEY}"}, max_attempts=1)
    with pytest.raises(ToolError, match=r"no answer \(LocalProtocolError\)") as caught:
        backend.search("x", 3)
    assert caught.value.__cause__ is None
    assert "s3cr3t" not in caplog.text


def test_a_key_in_the_options_is_refused_without_being_shown():
    for options in ({"headers": {"X-API-Key": "s3cr3t"}}, {"fields": {"api_key": "s3cr3t"}}):
        with pytest.raises(ValueError, match="must take its value from an environment variable") as caught:
            HTTPSearch("http://localhost", **options)
        assert "s3cr3t" not in str(caught.value)
    for url in ("http://localhost/?key=s3cr3t", "http://me:s3cr3t@localhost/"):
        with pytest.raises(ValueError, match="url must have no user and no query") as caught:
            HTTPSearch(url)
        assert "s3cr3t" not in str(caught.value)


def test_a_variable_that_is_not_set_is_an_error_of_the_start(monkeypatch):
    monkeypatch.delenv("TEST_SEARCH_KEY", raising=False)
    with pytest.raises(
        ValueError, match=r"headers must name environment variables that are set, got {TEST_SEARCH_KEY}"
    ):
        HTTPSearch("http://localhost", headers={"X-Key": "{TEST_SEARCH_KEY}"}).start()


def test_a_stop_ends_pauses(search):
    backend, received = search(Reply(status=500), first_pause_s=20.0, timeout_s=1000.0)
    failures = []

    def ask():
        try:
            backend.search("x", 3)
        except ToolError as error:
            failures.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while not received:
        thread.join(0.01)
    backend.stop()
    thread.join(10.0)
    assert not thread.is_alive()
    assert len(failures) == 1


def test_back_ends_that_ask_for_something_else_have_other_identities():
    same = [HTTPSearch("http://a/", max_attempts=n, fields={"x": 1, "y": 2}) for n in (1, 2)]
    assert same[0].identity == same[1].identity
    others = [
        HTTPSearch("http://b/"),
        HTTPSearch("http://a/", fields={"x": 2}),
        HTTPSearch("http://a/", method="POST"),
        HTTPSearch("http://a/", text_field="snippet"),
    ]
    assert len({backend.identity for backend in [*same, *others]}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost"}, "url must begin with http:// or https://, got 'localhost'"),
        ({"query_field": ""}, "query_field must be a name, .* got ''"),
        ({"query_field": "a.b"}, "query_field must be a name, .* got 'a.b'"),
        ({"max_attempts": 0}, "max_attempts must be positive, got 0"),
        ({"requests_per_s": 0.0}, r"requests_per_s must be positive and finite, got 0.0"),
        ({"timeout_s": float("inf")}, r"timeout_s must be positive and finite, got inf"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HTTPSearch(**{"url": "http://localhost", **options})
