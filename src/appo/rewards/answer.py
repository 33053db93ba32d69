"""Rewards the right answer in the right form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import REWARDS, Reward
from appo.rewards.mathematics import MathReward
from appo.rewards.release_rules import released_answer, released_f1, released_normalization
from appo.rewards.response_format import FormatError, boxed_answer
from appo.rewards.verdicts import agreement


@REWARDS.register
@dataclass(frozen=True)
class AnswerReward(Reward):
    """Word F1 of the boxed answer against the accepted answers, a bonus for several tools, a penalty for bad form.

    ``reward = format_penalty`` if the form is wrong, else ``max_k F1(answer, answers_k) + bonus * [F1 > 0 and every
    bonus tool answered]``. F1 is 1 if the answer is an accepted one. An accepted answer without a word of three letters
    is mathematics: signs, brackets and order count, and a wrong answer shares nothing with it. Its parts are `accuracy`
    (1 if the answer is an accepted one), `f1`, `format` (1 if the form is right) and `tool_bonus`.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384). Unlike the authors' release, this
    reads the form from what the policy wrote, not from tool output; it understands signs, decimal points, fractions and
    LaTeX; and only calls that a tool answered earn the bonus. `released_rules` brings the release's behavior back.
    """

    format_penalty: float = -1.0
    """Reward of a response that does not have the form."""
    multi_tool_bonus: float = 0.1
    """Added if the answer shares a word with an accepted one and every bonus tool was used. Where advantages divide by
    the deviation of a group's rewards, it makes a difference of full size in a group that is all right: set 0 there
    unless tools are to be used for their own sake."""
    bonus_tools: tuple[str, ...] = ("search", "python")
    """Tools that must all have answered a call for the bonus; `[]`: there is no bonus."""
    require_think: bool = True
    """Whether a response without a thought lacks the form."""
    released_rules: bool = False
    """Scores as the authors' release does, with its defects: tags count in tool output too, ``-3`` is 3 and ``9.80`` is
    980, LaTeX commands are words, and closing tags of all bonus tools anywhere earn the bonus."""

    math_verify: bool = False
    """Whether `math-verify` (the extra ``appo[math]``) decides on mathematics that is not understood without it; it is
    asked as `MathReward` does."""

    _mathematics: MathReward | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.math_verify:
            object.__setattr__(self, "_mathematics", MathReward())
        for option, value in (("format_penalty", self.format_penalty), ("multi_tool_bonus", self.multi_tool_bonus)):
            if not math.isfinite(value):
                raise ValueError(f"{option} must be finite, got {value}")
        if self.multi_tool_bonus < 0.0:
            raise ValueError(f"multi_tool_bonus must not be negative, got {self.multi_tool_bonus}")
        if not all(self.bonus_tools):
            raise ValueError(f"bonus_tools must hold names that are not empty, got {self.bonus_tools}")

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        try:
            boxed = self._answer(trajectory)
        except FormatError as error:
            parts = {"accuracy": 0.0, "f1": 0.0, "format": 0.0, "tool_bonus": 0.0}
            return RewardResult(self.format_penalty, parts, f"bad format: {error}")
        f1, is_right = self._agreement(boxed, trajectory.prompt.answers)
        has_bonus = f1 > 0.0 and bool(self.bonus_tools) and self._used_all_tools(trajectory)
        bonus = self.multi_tool_bonus if has_bonus else 0.0
        parts = {"accuracy": float(is_right), "f1": f1, "format": 1.0, "tool_bonus": bonus}
        word = "right" if is_right else "partly right" if f1 > 0.0 else "wrong"
        accepted = " or ".join(map(repr, trajectory.prompt.answers))
        reason = f"{word}: answered {boxed!r}, accepted {accepted}"
        return RewardResult(f1 + bonus, parts, reason, answer=self._vote(boxed))

    @property
    def max_parallel(self) -> int | None:
        return self._mathematics.max_parallel if self._mathematics else None

    def start(self) -> None:
        if self._mathematics:
            self._mathematics.start()

    def stop(self) -> None:
        if self._mathematics:
            self._mathematics.stop()

    def _answer(self, trajectory: Trajectory) -> str:
        if self.released_rules:
            return released_answer(trajectory.text, self.bonus_tools, require_think=self.require_think)
        tools = {*self.bonus_tools, *(call.tool for call in trajectory.tool_calls)}
        return boxed_answer(trajectory.segments, tools, require_think=self.require_think)

    def _agreement(self, boxed: str, accepted: tuple[str, ...]) -> tuple[float, bool]:
        """Largest F1 over the accepted answers, and whether the answer equals one of them."""
        if self.released_rules:
            normalized = released_normalization(boxed)
            is_right = bool(normalized) and normalized in map(released_normalization, accepted)
            return max((released_f1(boxed, answer) for answer in accepted), default=0.0), is_right
        is_right, f1 = agreement(boxed, accepted, self._decides if self._mathematics else None)
        return f1, is_right

    def _vote(self, boxed: str) -> str | None:
        """The answer as a majority vote counts it."""
        return (released_normalization(boxed) if self.released_rules else boxed.strip()) or None

    def _decides(self, boxed: str, accepted: str) -> bool:
        assert self._mathematics is not None
        return self._mathematics.score(boxed, (accepted,)).score == 1.0

    def _used_all_tools(self, trajectory: Trajectory) -> bool:
        if self.released_rules:
            return all(f"</{tool}>" in trajectory.text for tool in self.bonus_tools)
        return {call.tool for call in trajectory.tool_calls if call.failure is None}.issuperset(self.bonus_tools)
