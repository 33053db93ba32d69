"""Rewards the right answer and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.answer_grading import AnswerScore, Grading
from appo.rewards.base import REWARDS, Reward
from appo.rewards.verdicts import verdict


@REWARDS.register
@dataclass(frozen=True)
class ExactMatchReward(Reward):
    """1 if the final answer equals an accepted one, spelling aside; mathematics is compared by what it means.

    Its parts are `accuracy`, `exact_match` (the same), `f1`, `format` and `answered`.

    `grading` of ``right=1, right_malformed=0.8, wrong=0.2, wrong_malformed=0.1`` is the reward of "Tree Search for LLM
    Agent Reinforcement Learning" (https://arxiv.org/abs/2509.21240).
    """

    grading: Grading = field(default_factory=Grading)
    """Where the answer stands and what it earns."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return self.grading.grade(trajectory, lambda answer: self._score(answer, trajectory.prompt.answers))

    def _score(self, answer: str, accepted: tuple[str, ...]) -> AnswerScore:
        return AnswerScore(float(any(verdict(answer, other) for other in accepted)))
