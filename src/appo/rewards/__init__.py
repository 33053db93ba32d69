"""How good a trajectory is."""

from appo.rewards.answer import AnswerReward
from appo.rewards.answer_grading import Grading
from appo.rewards.base import REWARDS, Reward, RewardError, RewardTimeoutError
from appo.rewards.composite import CompositeReward
from appo.rewards.exact_match import ExactMatchReward
from appo.rewards.final import final_answer, same_answer
from appo.rewards.function import FunctionReward, as_reward
from appo.rewards.judge import JudgeReward
from appo.rewards.mathematics import MathReward
from appo.rewards.overlong import OverlongPenalty
from appo.rewards.queue import RewardQueue, Scored
from appo.rewards.runner import OnFailure, RewardRunner

__all__ = [
    "REWARDS",
    "AnswerReward",
    "CompositeReward",
    "ExactMatchReward",
    "FunctionReward",
    "Grading",
    "JudgeReward",
    "MathReward",
    "OnFailure",
    "OverlongPenalty",
    "Reward",
    "RewardError",
    "RewardQueue",
    "RewardRunner",
    "RewardTimeoutError",
    "Scored",
    "as_reward",
    "final_answer",
    "same_answer",
]
