"""When the answers of tools are taken up: as soon as they are there, or at fixed steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from appo.tools import ToolAnswer, ToolRunner


class Answers(Protocol):
    """Hands the answers of tools to the agent loop."""

    def expect(self, calls: Iterable[int]) -> None:
        """Says which calls were just submitted, by their numbers."""

    def take(self, is_generating: bool, wait_s: float | None) -> Sequence[ToolAnswer]:
        """The answers to take up now, after each step of the loop, each once.

        Args:
            is_generating: whether the engine had something to generate in this step.
            wait_s: seconds to wait for a tool if it had not; None waits as long as it takes.
        """


class AnswersAtOnce:
    """Each is taken up as soon as it is there.

    Args:
        runner: that the calls are submitted to.
    """

    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner

    def expect(self, calls: Iterable[int]) -> None:
        """Nothing needs to be known before."""

    def take(self, is_generating: bool, wait_s: float | None) -> Sequence[ToolAnswer]:
        return self._runner.finished(wait_s=0.0 if is_generating else wait_s)


class AnswersInStep:
    """Each is taken up a fixed number of steps behind its call, in the order of the calls, whenever it arrived.

    So what an engine generates together, and with it how its results are rounded, does not depend on how fast tools
    are. A step waits for answers that are due in it; where nothing is generated meanwhile, the next that are due are
    due now.

    Args:
        runner: that the calls are submitted to.
        steps: of the loop between a call and its answer.
    """

    def __init__(self, runner: ToolRunner, steps: int = 4) -> None:
        self._runner = runner
        self._steps = steps
        self._step = 0
        self._due: dict[int, int] = {}
        """The step of each call whose answer was not taken up, by its number."""
        self._arrived: dict[int, ToolAnswer] = {}

    def expect(self, calls: Iterable[int]) -> None:
        self._due |= dict.fromkeys(calls, self._step + self._steps)

    def take(self, is_generating: bool, wait_s: float | None) -> Sequence[ToolAnswer]:
        """As `Answers.take`; waits for what is due however long that takes."""
        self._step += 1
        if not is_generating and self._due:
            self._step = max(self._step, min(self._due.values()))
        due = sorted(call for call, step in self._due.items() if step <= self._step)
        while not self._arrived.keys() >= set(due):
            self._arrived |= {answer.key: answer for answer in self._runner.finished(wait_s=None)}
        for call in due:
            del self._due[call]
        return [self._arrived.pop(call) for call in due]
