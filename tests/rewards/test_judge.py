"""A judge behind real HTTP: what it is asked, what counts as a verdict, and what happens when it fails."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from appo.rewards import Grading, JudgeReward, RewardError, RewardRunner
from tests.rewards.responses import boxed, trajectory

KEY = "sk-not-for-anyone"

Answer = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]


def reply(text: str | None, finish_reason: str = "stop") -> tuple[int, dict[str, str], bytes]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


class Endpoint:
    """An OpenAI-compatible server on this machine; `answer` maps the number and body of a request to its response."""

    def __init__(self) -> None:
        self.answer: Answer = lambda number, body: reply("CORRECT")
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        endpoint, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append((self.path, dict(self.headers), body))
                status, headers, content = endpoint.answer(number, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


@pytest.fixture
def make_judge(endpoint) -> Iterator[Callable[..., JudgeReward]]:
    rewards = []

    def make(**options: Any) -> JudgeReward:
        rewards.append(JudgeReward("judge-1", **{"address": endpoint.address, "first_pause_s": 0.01, **options}))
        rewards[-1].start()
        return rewards[-1]

    yield make
    for reward in rewards:
        reward.stop()


def test_the_judge_is_asked_once_at_temperature_zero(endpoint, make_judge):
    reward = make_judge(template="{question}|{accepted}|{answer}", system="Be strict.", max_tokens=7)
    assert reward(boxed("Lutetia", ["Paris", "Lutèce"])).reward == 1.0
    ((path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions"
    assert "authorization" not in map(str.lower, headers)
    assert body == {
        "model": "judge-1",
        "messages": [
            {"role": "system", "content": "Be strict."},
            {"role": "user", "content": 'Capital?|Paris or Lutèce|"Lutetia"'},
        ],
        "temperature": 0.0,
        "max_tokens": 7,
    }


def test_the_standard_prompt_holds_question_answers_and_answer_and_no_system_prompt(endpoint, make_judge):
    make_judge()(boxed("Rome"))
    (message,) = endpoint.requests[0][2]["messages"]
    for line in ("Question: Capital?", "Accepted answers: Paris", 'Answer: "Rome"'):
        assert line in message["content"].splitlines()


def test_braces_of_an_answer_are_text(endpoint, make_judge):
    make_judge(template="{answer}")(boxed(r"\frac{question}{2}"))
    assert endpoint.requests[0][2]["messages"][0]["content"] == r'"\\frac{question}{2}"'


def test_the_whole_response_may_be_shown(endpoint, make_judge):
    make_judge(template="{response}", grading=Grading("response"))(trajectory("a", [" b "], "c"))
    assert endpoint.requests[0][2]["messages"][0]["content"] == '"a b c"'


def test_further_fields_of_the_request_are_an_option(endpoint, make_judge):
    make_judge(extra_body={"seed": 3})(boxed("x"))
    assert endpoint.requests[0][2]["seed"] == 3


@pytest.mark.parametrize(
    ("verdict", "text", "score"),
    [
        ("word", "CORRECT", 1.0),
        ("word", "incorrect", 0.0),
        ("word", "It names the city. It is not incorrect.\n\n  Correct \n", 1.0),
        # Words in the reasoning decide nothing.
        ("word", "This looks correct at first, correct?\nINCORRECT", 0.0),
        ("word", "<think>incorrect? wrong?</think>\nCORRECT", 1.0),
        ("word", "The answer is CORRECT", None),
        ("word", "CORRECT.", None),
        ("word", "CORRECT\nI think.", None),
        ("word", "CORRECT INCORRECT", None),
        ("word", "NOT CORRECT", None),
        ("word", "", None),
        ("word", None, None),
        ("json", '{"score": 1}', 1.0),
        ("json", 'It is half right.\n{"score": 0.5, "why": "half"}', 0.5),
        ("json", '{"score": true}', None),
        ("json", '{"score": 1.5}', None),
        ("json", '{"score": -1}', None),
        ("json", '{"score": NaN}', None),
        ("json", '{"score": "1"}', None),
        ("json", '{"value": 1}', None),
        ("json", "[1]", None),
        ("json", "1", None),
        ("json", '{"score": 1}\nDone.', None),
        ("json", "CORRECT", None),
    ],
)
def test_only_a_last_line_that_is_a_verdict_counts(endpoint, make_judge, verdict, text, score):
    endpoint.answer = lambda number, body: reply(text)
    result = make_judge(verdict=verdict, unparsable_score=0.25)(boxed("x"))
    assert result.parts["unparsable"] == float(score is None)
    assert result.parts["accuracy"] == result.reward == (0.25 if score is None else score)


def test_other_words_may_be_the_verdict(endpoint, make_judge):
    endpoint.answer = lambda number, body: reply("Ja")
    assert make_judge(words=("ja", "nein"))(boxed("x")).reward == 1.0


def test_a_reply_that_was_cut_off_is_no_verdict(endpoint, make_judge):
    endpoint.answer = lambda number, body: reply("Is it\nCORRECT", finish_reason="length")
    result = make_judge()(boxed("x"))
    assert (result.reward, result.parts["unparsable"]) == (0.0, 1.0)
    assert "the judge gave no verdict ('Is it\\nCORRECT')" in result.reason


def test_the_scale_applies_between_wrong_and_right(endpoint, make_judge):
    endpoint.answer = lambda number, body: reply('{"score": 0.75}')
    reward = make_judge(verdict="json", grading=Grading(right=1.0, wrong=-1.0))
    # -1 + 0.75 * (1 - -1) = 0.5
    assert reward(boxed("x")).reward == 0.5


def test_without_an_answer_the_judge_is_not_asked(endpoint, make_judge):
    result = make_judge(grading=Grading(no_answer=-0.5))(trajectory("I do not know."))
    assert result.reward == -0.5
    assert set(result.parts) == {"accuracy", "exact_match", "f1", "format", "answered", "unparsable"}
    assert not any(result.parts.values())
    assert endpoint.requests == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_failure_that_need_not_last_is_tried_again(endpoint, make_judge, status):
    endpoint.answer = lambda number, body: (status, {}, b"busy") if number < 2 else reply("CORRECT")
    assert make_judge()(boxed("x")).reward == 1.0
    assert len(endpoint.requests) == 3


def test_a_connection_that_breaks_is_tried_again(endpoint, make_judge):
    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if number == 0:
            raise ConnectionAbortedError
        return reply("CORRECT")

    endpoint.server.handle_error = lambda *arguments: None
    endpoint.answer = answer
    assert make_judge()(boxed("x")).reward == 1.0


def test_attempts_end(endpoint, make_judge):
    endpoint.answer = lambda number, body: (500, {}, b"broken")
    with pytest.raises(RewardError, match=r"the judge at .* failed 3 times: status 500: broken"):
        make_judge(max_attempts=3)(boxed("x"))
    assert len(endpoint.requests) == 4  # the last is about an answer that no judge stumbles over


def test_a_pause_that_the_server_asks_for_is_kept_unless_it_is_beyond_the_limit(endpoint, make_judge):
    endpoint.answer = lambda number, body: (429, {"Retry-After": "30"}, b"later")
    with pytest.raises(RewardError, match=r"failed 1 times: status 429: later"):
        make_judge(timeout_s=5.0)(boxed("x"))


def test_a_judge_that_does_not_answer_is_given_up(endpoint, make_judge):
    over = threading.Event()
    endpoint.answer = lambda number, body: over.wait(30) or reply("CORRECT")
    try:
        with pytest.raises(RewardError, match="failed 1 times: no answer in time"):
            make_judge(timeout_s=0.3)(boxed("x"))
    finally:
        over.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}, b"no such model"), "refused with status 404: no such model"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "refused with status 302"),
        ((200, {}, b"<html>"), "must answer with a chat completion, got '<html>'"),
        ((200, {}, b'{"choices": []}'), "must answer with a chat completion"),
        ((200, {}, b'{"choices": [{"message": null}]}'), "must answer with a chat completion"),
    ],
)
def test_a_failure_that_lasts_is_an_error_at_once(endpoint, make_judge, answer, message):
    endpoint.answer = lambda number, body: answer
    with pytest.raises(RewardError, match=message):
        make_judge()(boxed("x"))
    assert len(endpoint.requests) == 1


def test_the_key_is_sent_and_shown_nowhere(endpoint, make_judge, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.answer = lambda number, body: (401, {}, f"wrong key {body and KEY}".encode())
    reward = make_judge(headers={"Authorization": "Bearer {JUDGE_KEY}"})
    with pytest.raises(RewardError, match=r"status 401: wrong key \*\*\*") as error:
        RewardRunner(reward)([boxed("x")])
    assert endpoint.requests[0][1][
        "authorization" if "authorization" in endpoint.requests[0][1] else "Authorization"
    ] == (f"Bearer {KEY}")
    assert KEY not in str(error.value) + str(error.value.__cause__) + repr(reward) + caplog.text


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_is_an_error_at_the_start(make_judge, monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ValueError, match=r"headers must name environment variables that are set, got {JUDGE_KEY}"):
        make_judge(headers={"Authorization": "Bearer {JUDGE_KEY}"})


def test_a_key_in_the_options_is_refused_without_being_shown():
    with pytest.raises(ValueError, match=r"headers\.Authorization must take its value from an environment") as error:
        JudgeReward("m", headers={"Authorization": f"Bearer {KEY}"})
    assert KEY not in str(error.value)


def test_no_more_requests_at_once_than_allowed_and_results_in_order(endpoint, make_judge):
    running, counts, lock = 0, [], threading.Lock()
    together = threading.Barrier(3, timeout=20)

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        nonlocal running
        with lock:
            running += 1
            counts.append(running)
        together.wait()
        with lock:
            running -= 1
        return reply(f'{{"score": 0.{json.loads(body["messages"][0]["content"])}}}')

    endpoint.answer = answer
    reward = make_judge(max_concurrent=3, template="{answer}", verdict="json")
    results = RewardRunner(reward, 16)([boxed(str(i)) for i in range(9)])
    assert [result.reward for result in results] == [i / 10 for i in range(9)]
    assert max(counts) == reward.max_parallel == 3


def test_stopping_ends_the_pause_between_attempts(endpoint, make_judge):
    asked = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        asked.set()
        return 503, {}, b""

    endpoint.answer = answer
    reward = make_judge(first_pause_s=16.0)
    errors: list[RewardError] = []

    def ask() -> None:
        try:
            reward(boxed("x"))
        except RewardError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(20)
    reward.stop()
    thread.join(5)
    assert [str(error) for error in errors] == ["the reward was stopped"]


def test_it_must_be_started():
    with pytest.raises(RewardError, match="JudgeReward must be started before it is called"):
        JudgeReward("m")(boxed("x"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "model must be the judge's name at its endpoint, got none"),
        ({"address": "localhost:8000"}, "address must begin with http:// or https://"),
        ({"address": "https://me:secret@host/v1"}, "hold no password, got 'https://host/v1'"),
        ({"max_tokens": 0}, "max_tokens must be positive, got 0"),
        ({"max_concurrent": 0}, "max_concurrent must be positive, got 0"),
        ({"max_attempts": 0}, "max_attempts must be positive, got 0"),
        ({"timeout_s": -1.0}, "timeout_s must be positive, got -1.0"),
        ({"unparsable_score": 2.0}, r"unparsable_score must lie in \[0, 1\], got 2.0"),
        ({"verdict": "yaml"}, "verdict must be word or json, got 'yaml'"),
        ({"words": ("Yes", "yes ")}, "words must be two different words, got"),
        ({"extra_body": {"temperature": 1, "n": 2}}, "extra_body must not hold n, temperature, which the reward sets"),
        ({"template": "{question}"}, r"template must hold {answer} or {response}, .* got the fields \['question'\]"),
        ({"template": "{answer} {gold}"}, r"got the fields \['answer', 'gold'\]"),
        ({"template": "{answer.__class__}"}, r"got the fields \['answer.__class__'\]"),
        ({"template": "{answer"}, "template must have matching braces, got '{answer'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JudgeReward(**{"model": "m", **options})
