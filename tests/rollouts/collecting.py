"""A collector whose engine follows a script: what is sampled, scored and rewarded is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from appo.advantages import ProceduralAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt, RewardResult, Trajectory
from appo.engines import SamplingParams
from appo.rewards import Reward, RewardRunner
from appo.rollouts import AgentLoop, Branching, CandidateFilter, Collector, IterationData, Limits, PhaseTimer, Policy
from appo.rollouts.tree import Tree
from appo.scorers import BatchContext, Scorer, Scores
from appo.tools import TagSyntax, ToolRunner
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.conftest import ScriptedEngine

# Prompt "P" is answered "aab c" every time; its best candidate under the rules below decides what a branch is sent.
SCRIPT = {"P": f"aab c{EOS}", "Q": f"bbb{EOS}", "Paab c": f"a{EOS}", "Paab": f"xa{EOS}", "Qbbb": f"ba{EOS}", "Qbb": EOS}


@dataclass(frozen=True)
class Later(Scorer):
    """Prefers later positions."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        positions = torch.arange(batch.token_ids.shape[1], dtype=torch.float32).expand(batch.token_ids.shape)
        return Scores(positions.masked_fill(~batch.response_mask, float("-inf")))


@dataclass(frozen=True)
class CountLetters(Reward):
    """The number of letters "a" in a response."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(float(trajectory.text.count("a")), {"accuracy": 0.0})


def evaluate_half_below(batch: TrajectoryBatch) -> TrajectoryBatch:
    """Log-probs that are 0.5 below those of the behavior policy, entropies that are the position."""
    rows = (~batch.is_evaluated).nonzero()[:, 0]
    mask = batch.response_mask[rows]
    return batch.evaluated(
        rows,
        (batch.behavior_log_probs[rows] - 0.5) * mask,
        torch.arange(mask.shape[1]) * mask,
        policy_version=0,
    )


def make_prompts(tokenizer, names: Sequence[str]) -> list[Prompt]:
    return [Prompt(name, name, tuple(tokenizer.encode(name, add_special_tokens=False)), ("",)) for name in names]


def make_collector(
    engine: ScriptedEngine, runner: ToolRunner, branching: Branching, room: int = 8, **changes
) -> Collector:
    limits = Limits(max_response_tokens=room, max_tool_calls=0, max_result_tokens=1)
    options = {
        "agent": AgentLoop(engine, engine.tokenizer, runner, TagSyntax(), limits),
        "policy": Policy(evaluate_half_below),
        "scorer": Later(),
        "advantage": ProceduralAdvantage(),
        "reward": RewardRunner(CountLetters()),
        "branching": branching,
        "candidates": CandidateFilter(engine.tokenizer),
        "sampling": SamplingParams(),
        "seed": 0,
        "timer": PhaseTimer(),
        "deterministic": True,
    }
    return Collector(**{**options, **changes})


def collect(collector: Collector, prompts: Sequence[Prompt]) -> IterationData:
    """What comes of prompts whose roots are not there."""
    return collector.collect([Tree(prompt) for prompt in prompts], iteration=0)


def make_branching(num_roots: int, num_branches: int, **options) -> Branching:
    defaults = {"parents": "any", "split": "keep", "train_on": "trajectories"}
    return Branching(num_roots + num_branches, num_roots, **{**defaults, **options})
