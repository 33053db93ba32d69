"""An agent loop in a thread of its own: same trajectories, failures that reach the caller, and an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from appo.core.trajectory import Prompt, Trajectory
from appo.engines import Completion, SamplingParams
from appo.rollouts import AgentLoop, AsyncAgent, Limits, RolloutRequest
from appo.rollouts.agent import RequestBatch
from appo.tools import TagSyntax, Tool, ToolRunner
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.conftest import ScriptedEngine

LIMITS = Limits(max_response_tokens=500, max_tool_calls=4, max_result_tokens=50)
CALL, RESULT = "<python>1</python>", " <result>\n2\n</result>"


class Doubler(Tool):
    """Doubles a number, as soon as it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()

    @property
    def name(self) -> str:
        return "python"

    def __call__(self, argument: str) -> str:
        assert self.may_answer.wait(60)
        return str(2 * int(argument))


@pytest.fixture
def tool() -> Doubler:
    return Doubler()


@pytest.fixture
def runner(tool: Doubler) -> Iterator[ToolRunner]:
    runner = ToolRunner([tool])
    runner.start()
    yield runner
    tool.may_answer.set()
    runner.stop()


class BreakingEngine(ScriptedEngine):
    """Breaks at its second step."""

    def step(self) -> list[Completion]:
        if len(self.requests) > 1:
            raise RuntimeError("the engine broke")
        return super().step()


def _loop(tokenizer, runner: ToolRunner, engine: type[ScriptedEngine] = ScriptedEngine) -> AgentLoop:
    script = {"P": CALL, f"P{CALL}{RESULT}": f"two{EOS}", "Q": f"four{EOS}"}
    return AgentLoop(engine(tokenizer, script), tokenizer, runner, TagSyntax(), LIMITS)


def _requests(tokenizer, names: str) -> list[RolloutRequest]:
    return [RolloutRequest(Prompt(name, name, tuple(tokenizer.encode(name)), ("",)), seed=0) for name in names]


def test_what_is_begun_later_may_be_there_earlier(tokenizer, runner, tool):
    agent = AsyncAgent(_loop(tokenizer, runner))
    ahead = agent.begin(_requests(tokenizer, "PQ"), SamplingParams())
    (other,) = agent.run(_requests(tokenizer, "Q"), SamplingParams())
    assert other.text == "four"
    # P waits for its tool: what has waited for nothing else is not held up.
    assert not ahead.done()
    tool.may_answer.set()
    assert [trajectory.text for trajectory in ahead.result(60)] == [f"{CALL}{RESULT}two", "four"]
    assert agent.run([], SamplingParams()) == []
    agent.stop()


def test_a_failure_reaches_everyone_who_waits_or_asks(tokenizer, runner):
    agent = AsyncAgent(_loop(tokenizer, runner, BreakingEngine))
    begun = agent.begin(_requests(tokenizer, "PQ"), SamplingParams())
    with pytest.raises(RuntimeError, match="the engine broke"):
        begun.result(60)
    with pytest.raises(RuntimeError, match="the engine broke") as raised:
        agent.check()
    assert "step" in {entry.name for entry in raised.traceback}
    with pytest.raises(RuntimeError, match="the engine broke"):
        agent.begin(_requests(tokenizer, "Q"), SamplingParams())
    agent.stop()


def test_a_request_that_is_refused_fails_its_own_wait(tokenizer, runner):
    agent = AsyncAgent(_loop(tokenizer, runner))
    (request,) = _requests(tokenizer, "P")
    with pytest.raises(AttributeError):
        agent.begin([request, None], SamplingParams()).result(60)
    agent.stop()


class UnreadableLoop(AgentLoop):
    """Breaks when all is sampled."""

    def trajectories(self, batch: RequestBatch) -> list[Trajectory]:
        raise ValueError("no text of these tokens")


def test_a_failure_behind_the_last_token_reaches_the_caller(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"Q": f"four{EOS}"})
    agent = AsyncAgent(UnreadableLoop(engine, tokenizer, runner, TagSyntax(), LIMITS))
    with pytest.raises(ValueError, match="no text of these tokens"):
        agent.begin(_requests(tokenizer, "Q"), SamplingParams()).result(60)
    agent.stop()


def test_stopping_gives_up_what_is_on_its_way(tokenizer, runner):
    agent = AsyncAgent(_loop(tokenizer, runner))
    ahead = agent.begin(_requests(tokenizer, "P"), SamplingParams())
    agent.stop()
    assert ahead.cancelled()
    assert not [each for each in threading.enumerate() if each.name == "appo-sampling"]
    with pytest.raises(RuntimeError, match="the sampling thread was stopped"):
        agent.begin(_requests(tokenizer, "Q"), SamplingParams())


def test_seconds_belong_to_the_engine_or_to_tools_alone(tokenizer, runner, tool):
    loop = _loop(tokenizer, runner)
    batch = loop.begin(_requests(tokenizer, "P"), SamplingParams())
    loop.advance()
    generating_s = loop.costs.generating_s
    assert generating_s > 0
    assert loop.costs.tools_s == 0
    loop.advance(wait_s=0.001)  # nothing but the call is on its way
    assert loop.costs.tools_s >= 0.001
    assert loop.costs.generating_s == generating_s
    tool.may_answer.set()
    while batch.num_open:
        loop.advance()
    costs = loop.pop_costs()
    assert costs.num_tokens == len(CALL) + len("two") + 1
    assert loop.costs.num_tokens == 0
