"""Rewards the right answer in the right form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from appo.rewards.base import REWARDS, Reward
from appo.rewards.format import FormatError, boxed_answer
from appo.rewards.text import normalize_answer, token_f1
from appo.trajectory import Outcome, Trajectory


@REWARDS.register
@dataclass(frozen=True)
class AnswerReward(Reward):
    """Word F1 of the boxed answer against the accepted answers, a bonus for several tools, a penalty for bad form.

    ``reward = format_penalty`` if the form is wrong, else ``max_k F1(answer, answers_k) + bonus * [F1 > 0 and every
    bonus tool answered]``. Its parts are `accuracy` (1 if the normalized answer equals an accepted one), `f1`, `format`
    (1 if the form is right) and `tool_bonus`.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384). Unlike the authors' release, this
    reads the form from what the policy wrote, not from tool output; it understands signs, decimal points and LaTeX; and
    only calls that a tool answered earn the bonus.
    """

    format_penalty: float = -1.0
    """Reward of a response that does not have the form."""
    multi_tool_bonus: float = 0.1
    """Added if the answer shares a word with an accepted one and every bonus tool was used."""
    bonus_tools: tuple[str, ...] = ("search", "python")
    """Tools that must all have answered a call for the bonus; none means that there is no bonus."""
    require_think: bool = True
    """Whether a response without a thought lacks the form."""

    def __post_init__(self) -> None:
        for option, value in (("format_penalty", self.format_penalty), ("multi_tool_bonus", self.multi_tool_bonus)):
            if not math.isfinite(value):
                raise ValueError(f"{option} must be finite, got {value}")
        if self.multi_tool_bonus < 0.0:
            raise ValueError(f"multi_tool_bonus must not be negative, got {self.multi_tool_bonus}")
        if not all(self.bonus_tools):
            raise ValueError(f"bonus_tools must hold names that are not empty, got {self.bonus_tools}")

    def __call__(self, trajectory: Trajectory) -> Outcome:
        calls = trajectory.tool_calls
        try:
            tools = {*self.bonus_tools, *(call.tool for call in calls)}
            boxed = boxed_answer(trajectory.segments, tools, require_think=self.require_think)
        except FormatError as error:
            parts = {"accuracy": 0.0, "f1": 0.0, "format": 0.0, "tool_bonus": 0.0}
            return Outcome(self.format_penalty, parts, f"bad format: {error}")
        prediction = normalize_answer(boxed)
        answers = [normalize_answer(answer) for answer in trajectory.prompt.answers]
        f1 = max((token_f1(prediction, answer) for answer in answers), default=0.0)
        is_right = bool(prediction) and prediction in answers
        answered = {call.tool for call in calls if call.failure is None}
        has_bonus = f1 > 0.0 and bool(self.bonus_tools) and answered.issuperset(self.bonus_tools)
        bonus = self.multi_tool_bonus if has_bonus else 0.0
        parts = {"accuracy": float(is_right), "f1": f1, "format": 1.0, "tool_bonus": bonus}
        verdict = "right" if is_right else "partly right" if f1 > 0.0 else "wrong"
        accepted = " or ".join(map(repr, trajectory.prompt.answers))
        return Outcome(f1 + bonus, parts, f"{verdict}: answered {boxed!r}, accepted {accepted}")
