"""Sampling trajectories with tools, branching them, and turning them into rows that can be trained."""

from appo.rollouts.agent import AgentLoop
from appo.rollouts.async_agent import AsyncAgent
from appo.rollouts.branching import Branching, choose_branch_points
from appo.rollouts.buffer import RolloutBuffer
from appo.rollouts.candidates import DEFAULT_EXCLUSIONS, CandidateFilter, Exclusion
from appo.rollouts.collector import Collector, OnTruncation
from appo.rollouts.data import IterationData, MiniBatch, Policy
from appo.rollouts.episode import Limits, RolloutRequest
from appo.rollouts.iteration import IterationRunner
from appo.rollouts.log_prob_check import Mismatch, WeightProbe, default_tolerance
from appo.rollouts.sampling import Agent, SamplingCosts
from appo.rollouts.timing import PhaseTimer
from appo.rollouts.weight_sync import EngineMismatchError, WeightSync

__all__ = [
    "DEFAULT_EXCLUSIONS",
    "Agent",
    "AgentLoop",
    "AsyncAgent",
    "Branching",
    "CandidateFilter",
    "Collector",
    "EngineMismatchError",
    "Exclusion",
    "IterationData",
    "IterationRunner",
    "Limits",
    "MiniBatch",
    "Mismatch",
    "OnTruncation",
    "PhaseTimer",
    "Policy",
    "RolloutBuffer",
    "RolloutRequest",
    "SamplingCosts",
    "WeightProbe",
    "WeightSync",
    "choose_branch_points",
    "default_tolerance",
]
