"""Rewards the right answer and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.answer_grading import AnswerScore, Grading
from appo.rewards.answer_text import agree, normalize_answer
from appo.rewards.base import REWARDS, Reward


@REWARDS.register
@dataclass(frozen=True)
class ExactMatchReward(Reward):
    """1 if the final answer equals an accepted one, spelling aside; numbers are compared by value.

    Its parts are `accuracy`, `exact_match` (the same), `f1`, `format` and `answered`.

    `grading` of ``right=1, right_malformed=0.8, wrong=0.2, wrong_malformed=0.1`` is the reward of "Tree Search for LLM
    Agent Reinforcement Learning" (https://arxiv.org/abs/2509.21240).
    """

    grading: Grading = field(default_factory=Grading)
    """Where the answer stands and what it earns."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return self.grading.grade(trajectory, lambda answer: self._score(answer, trajectory.prompt.answers))

    def _score(self, answer: str, accepted: tuple[str, ...]) -> AnswerScore:
        normalized = normalize_answer(answer)
        is_right = any(agree(normalized, normalize_answer(other)) for other in accepted)
        return AnswerScore(float(is_right))
