"""How good a trajectory is."""

from appo.rewards.answer import AnswerReward
from appo.rewards.base import REWARDS, Reward

__all__ = ["REWARDS", "AnswerReward", "Reward"]
