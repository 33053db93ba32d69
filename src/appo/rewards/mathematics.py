"""Rewards an answer that is mathematically equal to an accepted one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from appo.core.extras import require_extra
from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.answer_grading import AnswerScore, Grading
from appo.rewards.base import REWARDS, Reward
from appo.rewards.quantities import quantity
from appo.rewards.verdicts import verdict
from appo.workers.processes import ProcessLostError, ProcessPool, ProcessTimeoutError

_EQUIVALENCE = Path(__file__).with_name("equivalence.py")
_MAX_NUMBER = 64
_MAX_KNOWN = 2**14
"""Pairs of answers whose comparison is remembered."""


@REWARDS.register
@dataclass(eq=False)
class MathReward(Reward):
    """1 if the final answer is mathematically equal to an accepted one: ``1/2`` to ``0.5``, ``x+1`` to ``1+x``.

    What `ExactMatchReward` understands, it compares as that does, and decimal numbers to `float_rounding` decimals
    besides. For the rest it asks the package `math-verify`, which the extra ``appo[math]`` installs, in processes of
    its own that are killed at the limit: there are answers that take forever to compare.

    Its parts are `accuracy`, `exact_match` and `f1` (of the words), `format`, `answered` and `undecided`: 1
    where time or memory did not suffice to compare, which counts as a wrong answer.
    """

    grading: Grading = field(default_factory=Grading)
    """Where the answer stands and what it earns."""
    timeout_s: float = 5.0
    """Seconds to compare an answer with all accepted ones."""
    float_rounding: int = 6
    """Decimals that decimal numbers are compared to."""
    num_processes: int = 2
    """Processes that compare; so many trajectories are scored at once."""
    memory_mb: int = 2048
    """Address space of each in MiB."""

    _pool: ProcessPool = field(init=False, repr=False)
    _known: dict[tuple[str, str], bool] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0.0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}")
        if self.float_rounding < 0:
            raise ValueError(f"float_rounding must not be negative, got {self.float_rounding}")
        if self.num_processes < 1:
            raise ValueError(f"num_processes must be positive, got {self.num_processes}")
        if self.memory_mb < 256:
            raise ValueError(f"memory_mb must be at least 256, which a process needs for itself, got {self.memory_mb}")
        require_extra("math_verify", type(self).__name__, "math")
        self._pool = ProcessPool(f"{_EQUIVALENCE}:is_equivalent", self.num_processes, self.memory_mb)

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        accepted = trajectory.prompt.answers
        return self.grading.grade(trajectory, lambda answer: self.score(answer, accepted), {"undecided": 0.0})

    @property
    def max_parallel(self) -> int:
        return self.num_processes

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        self._pool.stop()

    def score(self, answer: str, accepted: tuple[str, ...]) -> AnswerScore:
        """Whether a final answer is one of the accepted ones."""
        deadline = time.monotonic() + self.timeout_s
        undecided = []
        for other in accepted:
            try:
                if self._is_right(answer, other, deadline):
                    return AnswerScore(1.0)
            except (ProcessTimeoutError, ProcessLostError) as error:
                undecided.append(str(error))
        return AnswerScore(0.0, {"undecided": 1.0}, "; ".join(undecided)) if undecided else AnswerScore(0.0)

    def _is_rounded(self, answer: str, accepted: str) -> bool:
        """Whether two numbers, one of them a decimal, are equal to `float_rounding` decimals."""
        if "." not in answer + accepted or max(len(answer), len(accepted)) > _MAX_NUMBER:
            return False
        one, other = quantity(answer.strip()), quantity(accepted.strip())
        if one is None or other is None or one.unit or other.unit:
            return False
        return round(one.number, self.float_rounding) == round(other.number, self.float_rounding)

    def _is_right(self, answer: str, accepted: str, deadline: float) -> bool:
        found = verdict(answer, accepted)
        if found is not None:
            return found or self._is_rounded(answer, accepted)
        # Trajectories of one prompt have few different answers.
        known = self._known.get((accepted, answer))
        if known is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0.0:
                raise ProcessTimeoutError(f"no time was left to compare with {accepted!r}")
            known = bool(self._pool.call(left_s, accepted, answer, self.float_rounding))
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[accepted, answer] = known
        return known
