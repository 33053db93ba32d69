"""Sampling trajectories and turning them into training rows."""

from appo.rollouts.agent import AgentLoop, SamplingCosts
from appo.rollouts.async_agent import Agent, SamplingThread
from appo.rollouts.branching import DEFAULT_EXCLUSIONS, CandidateFilter, Exclusion, check_exclusions
from appo.rollouts.buffer import RolloutBuffer
from appo.rollouts.collector import BranchRules, Collector
from appo.rollouts.data import NOT_MEASURED, BranchPlan, Measured, Rollouts
from appo.rollouts.episode import AgentLimits, Start, ToolRules
from appo.rollouts.iteration import IterationRunner
from appo.rollouts.log_prob_check import WeightProbe, default_tolerance
from appo.rollouts.timing import Stopwatch
from appo.rollouts.weight_sync import EngineMismatchError, WeightSync

__all__ = [
    "DEFAULT_EXCLUSIONS",
    "NOT_MEASURED",
    "Agent",
    "AgentLimits",
    "AgentLoop",
    "BranchPlan",
    "BranchRules",
    "CandidateFilter",
    "Collector",
    "EngineMismatchError",
    "Exclusion",
    "IterationRunner",
    "Measured",
    "RolloutBuffer",
    "Rollouts",
    "SamplingCosts",
    "SamplingThread",
    "Start",
    "Stopwatch",
    "ToolRules",
    "WeightProbe",
    "WeightSync",
    "check_exclusions",
    "default_tolerance",
]
