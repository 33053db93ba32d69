"""From a final answer and its score to a reward: what the rewards share that know only right and wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.response_format import FormatError, boxed_answer, final_answer
from appo.rewards.verdicts import agreement

AnswerPlace = Literal["box", "answer", "response"]
"""Where the final answer stands in what the policy wrote: the last box, the last answer tag, or all that follows the
last thought and the last tool output."""


@dataclass(frozen=True)
class AnswerScore:
    """How far an answer is right.

    Attributes:
        score: share of the answer that is right, in [0, 1].
        parts: further parts of the reward.
        reason: in words; empty if the score says it all.
    """

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Grading:
    """Where the final answer stands and what it earns; a score between right and wrong earns in proportion."""

    answer_from: AnswerPlace = "box"
    r"""`box`: the content of the last ``\boxed{...}``; `answer`: that of the last ``<answer>...</answer>``, out of its
    box if it has one; `response`: all that follows the last thought and the last tool output."""
    right: float = 1.0
    """Of a right answer in the right form."""
    right_malformed: float = 1.0
    """Of a right answer in a response that lacks the form."""
    wrong: float = 0.0
    """Of a wrong answer in the right form."""
    wrong_malformed: float = 0.0
    """Of a wrong answer in a response that lacks the form."""
    no_answer: float = 0.0
    """Of a response without an answer."""
    require_think: bool = True
    """Whether a response without a thought lacks the form."""
    tools: tuple[str, ...] = ("search", "python")
    """Names whose tags are calls, besides those of the tools that were called."""

    def __post_init__(self) -> None:
        if self.answer_from not in ("box", "answer", "response"):
            raise ValueError(f"answer_from must be box, answer or response, got {self.answer_from!r}")
        for option in ("right", "right_malformed", "wrong", "wrong_malformed", "no_answer"):
            if not math.isfinite(value := getattr(self, option)):
                raise ValueError(f"{option} must be finite, got {value}")

    def grade(
        self,
        trajectory: Trajectory,
        score: Callable[[str], AnswerScore],
        parts: Mapping[str, float] = MappingProxyType({}),
    ) -> RewardResult:
        """Rewards the final answer of a trajectory.

        The parts are `accuracy`, the score; `exact_match` and `f1`, how the words agree with those of the best accepted
        answer, whatever the score; `format` and `answered`.

        Args:
            trajectory: a finished one.
            score: says how far an answer is right; not asked if there is none.
            parts: further parts of the reward, where the score does not have them.
        """
        try:
            tools = {*self.tools, *(call.tool for call in trajectory.tool_calls)}
            boxed_answer(trajectory.segments, tools, require_think=self.require_think)
            form, flaw = 1.0, ""
        except FormatError as error:
            form, flaw = 0.0, f"; bad format: {error}"
        answer = final_answer(trajectory.segments, self.answer_from)
        if not answer:
            unanswered = {"accuracy": 0.0, "exact_match": 0.0, "f1": 0.0, "format": form, "answered": 0.0, **parts}
            return RewardResult(self.no_answer, unanswered, f"there is no answer{flaw}")
        scored = score(answer)
        is_match, f1 = agreement(answer, trajectory.prompt.answers)
        common = {
            "accuracy": scored.score,
            "exact_match": float(is_match),
            "f1": f1,
            "format": form,
            "answered": 1.0,
        }
        right, wrong = (self.right, self.wrong) if form else (self.right_malformed, self.wrong_malformed)
        word = scored.reason or ("right" if scored.score == 1.0 else "wrong" if scored.score == 0.0 else "partly right")
        accepted = " or ".join(map(repr, trajectory.prompt.answers))
        return RewardResult(
            scored.score * right + (1.0 - scored.score) * wrong,
            {**common, **parts, **scored.parts},
            f"{word}: answered {answer!r}, accepted {accepted}{flaw}",
            answer=answer,
        )
