"""Answers of tools at fixed steps: what is sampled does not depend on how fast a tool is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from appo.core.trajectory import Prompt
from appo.engines import SamplingParams
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.rollouts.answers import AnswersInStep
from appo.tools import TagSyntax, Tool, ToolAnswer, ToolRunner
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.conftest import ScriptedEngine

NUM_CALLS = 4


class InTurn(Tool):
    """Answers calls in the order of their numbers, whichever came first."""

    name = "python"

    def __init__(self, order: Sequence[int]) -> None:
        self._order = list(order)
        self._changed = threading.Condition()

    def __call__(self, argument: str) -> str:
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == int(argument), timeout=20.0)
            self._order.pop(0)
            self._changed.notify_all()
        return argument


class Arrivals(ToolRunner):
    """A runner whose answers arrive when the test says so."""

    def __init__(self, *batches: Sequence[int]) -> None:
        super().__init__([])
        self.batches: Iterator[Sequence[int]] = iter(batches)

    def finished(self, wait_s: float | None = 0.0) -> list[ToolAnswer]:
        assert wait_s is None
        return [ToolAnswer(key, str(key), None, 0.0) for key in next(self.batches)]


def _sampled(tokenizer, order: Sequence[int]) -> list[list[float]]:
    """The log-probs of trajectories that call a tool once each; the engine counts them up over all it samples."""
    script = {}
    for number in range(NUM_CALLS):
        script[f"Q{number}"] = f"<python>{number}</python>"
        script[f"Q{number}<python>{number}</python> <result>\n{number}\n</result>"] = f"ok{EOS}"
    requests = [
        RolloutRequest(Prompt(text, text, tuple(tokenizer.encode(text)), ("",)), seed=0)
        for text in (f"Q{number}" for number in range(NUM_CALLS))
    ]
    runner = ToolRunner([InTurn(order)])
    runner.start()
    try:
        engine = ScriptedEngine(tokenizer, script)
        loop = AgentLoop(engine, tokenizer, runner, TagSyntax(), Limits(max_response_tokens=99), deterministic=True)
        return [t.behavior_log_probs.tolist() for t in loop.run(requests, SamplingParams())]
    finally:
        runner.stop()


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_what_is_sampled_does_not_depend_on_the_order_in_which_tools_answer(tokenizer, order):
    assert _sampled(tokenizer, order) == _sampled(tokenizer, range(NUM_CALLS))


def test_an_answer_is_taken_up_at_its_step_and_not_before():
    answers = AnswersInStep(Arrivals([1], [0], [2]), steps=3)
    answers.expect([0, 1])
    assert answers.take(True, None) == []
    answers.expect([2])
    assert answers.take(True, None) == []
    assert [answer.key for answer in answers.take(True, None)] == [0, 1]  # in the order of the calls
    assert [answer.key for answer in answers.take(True, None)] == [2]
    assert answers.take(True, None) == []


def test_an_answer_that_came_early_is_kept_for_its_step():
    answers = AnswersInStep(Arrivals([1, 0]), steps=1)
    answers.expect([0])
    assert [answer.key for answer in answers.take(True, None)] == [0]
    answers.expect([1])
    assert [answer.key for answer in answers.take(True, None)] == [1]


def test_with_nothing_to_generate_the_next_answers_are_due():
    answers = AnswersInStep(Arrivals([0, 1], [2]), steps=5)
    answers.expect([0, 1])
    answers.take(True, None)
    answers.expect([2])
    assert [answer.key for answer in answers.take(False, None)] == [0, 1]
    assert [answer.key for answer in answers.take(False, None)] == [2]
