"""Sampling trajectories and turning them into training rows."""

from appo.rollouts.agent import AgentLoop, SamplingCosts
from appo.rollouts.buffer import RolloutBuffer
from appo.rollouts.candidates import DEFAULT_EXCLUSIONS, CandidateFilter, Exclusion, check_exclusions
from appo.rollouts.collected import NOT_MEASURED, BranchPlan, Measured, Rollouts
from appo.rollouts.collector import BranchRules, Collector
from appo.rollouts.episode import AgentLimits, Start, ToolRules
from appo.rollouts.evaluation import Evaluated, EvaluationMetrics
from appo.rollouts.iteration import IterationRunner
from appo.rollouts.metrics import cost_metrics, rollout_metrics
from appo.rollouts.probe import WeightProbe, default_tolerance
from appo.rollouts.records import (
    TrajectoryWriter,
    read_trajectories,
    trajectory_from_record,
    trajectory_record,
    without_text,
)
from appo.rollouts.sampling_thread import Agent, SamplingThread
from appo.rollouts.stopwatch import Stopwatch
from appo.rollouts.sync import EngineMismatchError, WeightSync
from appo.rollouts.tool_checks import check_stop_strings, check_tools

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
    "Evaluated",
    "EvaluationMetrics",
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
    "TrajectoryWriter",
    "WeightProbe",
    "WeightSync",
    "check_exclusions",
    "check_stop_strings",
    "check_tools",
    "cost_metrics",
    "default_tolerance",
    "read_trajectories",
    "rollout_metrics",
    "trajectory_from_record",
    "trajectory_record",
    "without_text",
]
