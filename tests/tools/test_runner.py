import threading
import time

import pytest

from appo.tools import (
    Tool,
    ToolArgumentError,
    ToolError,
    ToolProvider,
    ToolRunner,
    ToolTimeoutError,
    ToolUnavailableError,
)


class Scripted(Tool):
    """Answers with what a function makes of the argument."""

    def __init__(self, function, name="tool", timeout_s=30.0):
        self.function = function
        self.timeout_s = timeout_s
        self.num_starts = 0
        self._name = name

    @property
    def name(self):
        return self._name

    def start(self):
        self.num_starts += 1

    def stop(self):
        self.num_starts -= 1

    def __call__(self, argument):
        return self.function(argument)


@pytest.fixture
def run():
    """Starts a runner of the given tools; stops it after the test."""
    runners = []

    def start(*tools, **options):
        runners.append(ToolRunner(tools, **options))
        runners[-1].start()
        return runners[-1]

    yield start
    for runner in runners:
        runner.stop()


def collect(runner):
    answers = []
    while runner.num_in_flight:
        answers += runner.finished(None)
    return {answer.key: answer for answer in answers}


def raiser(error):
    def call(argument):
        raise error

    return call


def test_every_call_gets_its_own_answer_once(run):
    runner = run(Scripted(str.upper), max_parallel=4)
    for key in range(100):
        runner.submit(key, "tool", f"a{key}")
    assert runner.num_in_flight == 100
    answers = collect(runner)
    assert {key: (answer.text, answer.failure) for key, answer in answers.items()} == {
        key: (f"A{key}", None) for key in range(100)
    }
    assert runner.finished(None) == []


def test_calls_run_side_by_side_and_the_caller_goes_on(run):
    barrier = threading.Barrier(5)
    runner = run(Scripted(lambda argument: str(barrier.wait(30.0) >= 0)))
    for key in range(4):
        runner.submit(key, "tool", "")
    assert runner.finished() == []
    assert runner.finished(0.01) == []
    barrier.wait(30.0)
    assert {answer.text for answer in collect(runner).values()} == {"True"}


def test_no_more_calls_run_at_once_than_allowed(run):
    running, most, lock = 0, 0, threading.Lock()

    def count(argument):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(30.0)
        with lock:
            running -= 1
        return ""

    both = threading.Barrier(2)
    runner = run(Scripted(count), max_parallel=2)
    for key in range(10):
        runner.submit(key, "tool", "")
    collect(runner)
    assert most == 2


@pytest.mark.parametrize(
    ("function", "text", "failure"),
    [
        (raiser(ToolError("No such page.")), "No such page.", "error"),
        (raiser(ToolTimeoutError("Too slow.")), "Too slow.", "timeout"),
        (raiser(KeyError("x")), "Error: KeyError: 'x'", "error"),
        (lambda argument: None, "Error: TypeError: the tool must answer with text, got NoneType", "error"),
        (lambda argument: "", "", None),
    ],
)
def test_what_a_tool_raises_becomes_its_answer(run, function, text, failure):
    runner = run(Scripted(function))
    runner.submit(0, "tool", "")
    answer = collect(runner)[0]
    assert (answer.text, answer.failure) == (text, failure)
    assert answer.duration_s >= 0.0


def test_unexpected_exceptions_are_logged_once_of_each_kind(run, caplog):
    runner = run(Scripted(raiser(KeyError("x"))), max_parallel=1)
    for key in range(3):
        runner.submit(key, "tool", "")
    collect(runner)
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


def test_unknown_tool_is_answered_with_the_known_ones(run):
    runner = run(Scripted(str.upper, "search"), Scripted(str.upper, "python"))
    runner.submit(7, "bash", "ls")
    answer = collect(runner)[7]
    assert (answer.text, answer.failure) == ("Error: no tool is named 'bash'; there are: search, python", "unknown")


def test_long_answer_is_cut_with_a_note(run):
    runner = run(Scripted(lambda argument: "x" * 11), max_result_chars=10)
    runner.submit(0, "tool", "")
    assert collect(runner)[0].text == "x" * 10 + "\n[cut after 10 characters]"


def test_call_that_hangs_is_given_up_and_its_thread_replaced(run):
    release = threading.Event()
    runner = run(Scripted(lambda argument: str(release.wait(60.0)), "slow", 0.05), Scripted(str.upper), max_parallel=1)
    runner.submit(0, "slow", "")
    runner.submit(1, "tool", "a")
    begun = time.monotonic()
    answers = collect(runner)
    assert time.monotonic() - begun < 5.0
    assert (answers[0].text, answers[0].failure) == ("Timed out after 0.05 seconds.", "timeout")
    assert (answers[1].text, answers[1].failure) == ("A", None)
    # The late answer belongs to nobody, not even to a new call with the same key.
    held = threading.Event()
    runner.tools["tool"].function = lambda argument: str(held.wait(60.0))
    runner.submit(0, "tool", "b")
    release.set()
    assert runner.finished(0.2) == []
    held.set()
    assert collect(runner)[0].text == "True"


def test_thread_that_was_left_behind_ends_with_its_call(run):
    release = threading.Event()
    others = set(threading.enumerate())
    runner = run(Scripted(lambda argument: str(release.wait(60.0)), timeout_s=0.01), max_parallel=1)
    (thread,) = set(threading.enumerate()) - others
    runner.submit(0, "tool", "")
    assert collect(runner)[0].failure == "timeout"
    release.set()
    thread.join(30.0)
    assert not thread.is_alive()
    runner.submit(0, "tool", "")
    assert collect(runner)[0].text == "True"


def test_time_spent_in_the_queue_does_not_count(run):
    gate = threading.Event()
    runner = run(Scripted(lambda a: str(gate.wait(60.0)), "first"), Scripted(str.upper, "next", 0.01), max_parallel=1)
    runner.submit(0, "first", "")
    runner.submit(1, "next", "a")
    # Longer than the limit of the second call and the grace together.
    assert runner.finished(0.8) == []
    gate.set()
    assert collect(runner)[1].text == "A"


def test_runner_starts_and_stops_its_tools(run):
    tool = Scripted(str.upper)
    runner = run(tool)
    runner.start()
    assert tool.num_starts == 1
    runner.stop()
    assert tool.num_starts == 0
    runner.start()
    runner.submit(0, "tool", "a")
    assert collect(runner)[0].text == "A"


def test_tool_that_cannot_start_stops_the_others():
    first, second = Scripted(str.upper, "first"), Scripted(str.upper, "second")
    second.start = lambda: raiser(OSError("no index"))("")
    with pytest.raises(OSError, match="no index"):
        ToolRunner([first, second]).start()
    assert first.num_starts == 0


def test_stop_drops_what_is_in_flight(run):
    release = threading.Event()
    runner = run(Scripted(lambda argument: str(release.wait(60.0))), max_parallel=1)
    runner.submit(0, "tool", "")
    runner.submit(1, "tool", "")
    release.set()
    runner.stop()
    assert runner.num_in_flight == 0
    runner.start()
    assert runner.finished(0.05) == []


def test_wrong_use_is_refused(run):
    with pytest.raises(ValueError, match="tools must have different names, got 'tool' more than once"):
        ToolRunner([Scripted(str.upper), Scripted(str.lower)])
    with pytest.raises(ValueError, match="max_parallel must be positive, got 0"):
        ToolRunner([], max_parallel=0)
    with pytest.raises(ValueError, match="attempts must be positive, got 0"):
        ToolRunner([], attempts=0)
    with pytest.raises(ValueError, match="retry_wait_s must be finite and not negative, got -1"):
        ToolRunner([], retry_wait_s=-1)
    with pytest.raises(RuntimeError, match="must be started"):
        ToolRunner([Scripted(str.upper)]).submit(0, "tool", "")
    release = threading.Event()
    runner = run(Scripted(lambda argument: str(release.wait(60.0))))
    runner.submit(3, "tool", "")
    with pytest.raises(ValueError, match="key must be unique among the calls in flight, got 3 again"):
        runner.submit(3, "tool", "")
    release.set()


class Numbered(ToolProvider):
    """Offers two tools once it is started."""

    def __init__(self):
        self.is_started = False

    @property
    def tools(self):
        return [Scripted(str.upper, "first"), Scripted(str.lower, "second")] if self.is_started else []

    def start(self):
        self.is_started = True

    def stop(self):
        self.is_started = False


def test_tools_of_a_provider_are_known_once_it_is_started():
    provider = Numbered()
    runner = ToolRunner([provider, Scripted(str.title, "third")])
    with pytest.raises(RuntimeError, match="must be started before it knows its tools"):
        runner.schemas()
    runner.start()
    assert [schema["function"]["name"] for schema in runner.schemas()] == ["first", "second", "third"]
    runner.submit(0, "second", "ABC")
    assert collect(runner)[0].text == "abc"
    runner.stop()
    assert not provider.is_started


def test_a_name_that_two_providers_offer_stops_what_was_started():
    provider = Numbered()
    with pytest.raises(ValueError, match="tools must have different names, got 'first' more than once"):
        ToolRunner([provider, Scripted(str.upper, "first")]).start()
    assert not provider.is_started


def test_arguments_by_name_become_the_text_that_the_tool_takes(run):
    runner = run(Scripted(str.upper))
    for key, arguments in enumerate([{"input": " a "}, {"text": "a"}, {"input": 1}, {"input": "a", "more": "b"}, {}]):
        runner.submit(key, "tool", arguments)
    answers = collect(runner)
    assert (answers[0].text, answers[0].failure) == ("A", None)
    assert {answers[key].failure for key in range(1, 5)} == {"invalid"}
    assert answers[2].text == "Error: tool takes one argument, the text 'input', got {'input': 1}"


def test_failures_say_of_what_kind_they_are(run):
    errors = [ToolError("e"), ToolTimeoutError("t"), ToolArgumentError("a"), ToolUnavailableError("u")]
    runner = run(*[Scripted(raiser(error), str(error)) for error in errors])
    for key, error in enumerate(errors):
        runner.submit(key, str(error), "")
    answers = collect(runner)
    assert [answers[key].failure for key in range(4)] == ["error", "timeout", "invalid", "unavailable"]


def flaky(errors, seen):
    def call(argument):
        seen.append(argument)
        if errors:
            raise errors.pop(0)
        return ""

    return call


def test_a_tool_that_breaks_is_tried_again_as_often_as_allowed(run):
    seen = []
    runner = run(Scripted(flaky([OSError("net"), OSError("net")], seen)), attempts=3, retry_wait_s=0.0)
    runner.submit(0, "tool", "x")
    answer = collect(runner)[0]
    assert (answer.text, answer.failure, seen) == ("", None, ["x"] * 3)
    runner.tools["tool"].function = flaky([OSError("net")] * 3, seen)
    runner.submit(0, "tool", "y")
    answer = collect(runner)[0]
    assert (answer.text, answer.failure, seen[3:]) == ("Error: OSError: net", "error", ["y"] * 3)


@pytest.mark.parametrize("error", [ToolError("no"), ToolTimeoutError("no"), None])
def test_an_answer_is_not_asked_for_again_be_it_a_failure_or_empty(run, error):
    seen = []
    runner = run(Scripted(flaky([error] if error else [], seen)), attempts=3, retry_wait_s=0.0)
    runner.submit(0, "tool", "x")
    assert collect(runner)[0].text == ("no" if error else "")
    assert seen == ["x"]


def test_a_broken_tool_is_not_tried_again_beyond_its_time(run):
    seen = []
    runner = run(Scripted(flaky([OSError("net")] * 9, seen), timeout_s=20.0), attempts=9, retry_wait_s=60.0)
    runner.submit(0, "tool", "x")
    begun = time.monotonic()
    assert collect(runner)[0].text == "Error: OSError: net"
    assert time.monotonic() - begun < 10.0
    assert seen == ["x"]


def test_stop_does_not_wait_for_the_next_attempt(run):
    tried = threading.Event()

    def fail(argument):
        tried.set()
        raise OSError("net")

    others = set(threading.enumerate())
    runner = run(Scripted(fail, timeout_s=600.0), attempts=2, retry_wait_s=60.0)
    threads = set(threading.enumerate()) - others
    runner.submit(0, "tool", "x")
    tried.wait(30.0)
    runner.stop()
    for thread in threads:
        thread.join(10.0)
        assert not thread.is_alive()


def test_an_answer_with_half_a_surrogate_pair_becomes_text(run):
    runner = run(Scripted(lambda argument: "a\ud800b"))
    runner.submit(0, "tool", "")
    assert collect(runner)[0].text == "a?b"
