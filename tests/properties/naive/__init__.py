"""What every component computes, in plain Python over rows and tokens: written from the formulas, slow and obvious.

The tables hold the definition of every registered component and the values of its options under which the two are
compared. A component without an entry, or with an option that its entry does not know, fails the tests until it has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from tests.properties.naive import advantages, losses, scorers
from tests.properties.naive.common import Row

Options = Mapping[str, st.SearchStrategy[Any]]


def choice(*values: Any) -> st.SearchStrategy[Any]:
    """One of the values."""
    return st.sampled_from(values)


@dataclass(frozen=True)
class ScorerDefinition:
    """What a scorer computes.

    Attributes:
        compute: scores of every row.
        options: values of every option.
        is_random: True if the generator decides, so that a row's scores depend on where it stands.
    """

    compute: Callable[[Any, list[Row], torch.Generator], list[scorers.NaiveScores]]
    options: Options
    is_random: bool = False


@dataclass(frozen=True)
class AdvantageDefinition:
    """What an advantage estimator computes.

    Attributes:
        compute: advantages by row and position.
        options: values of every option.
        sums_to_zero: options under which the advantages of a prompt add up to 0 at every position, as long as every
            token counts; None if there are none.
        with_branches: True if they do so with branches too, False if only initial trajectories are compared.
        across_prompts: True if rewards of one prompt act on the advantages of another.
        flat_is_zero: options under which equal rewards have no advantage; None if there are none.
    """

    compute: Callable[[Any, list[Row]], list[list[float]]]
    options: Options
    sums_to_zero: Mapping[str, Any] | None
    with_branches: bool = True
    across_prompts: bool = False
    flat_is_zero: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class LossDefinition:
    """What a loss computes.

    Attributes:
        terms: the surrogate.
        options: values of every option that it has beyond `COMMON`, or of other defaults.
        keeps: which rows the surrogate counts.
    """

    terms: losses.Terms
    options: Options
    keeps: losses.Keeps = losses.always


STD = choice("population", "sample", "none")
GAIN = {
    "half_life": choice(0.5, 3.0, 32.0, None),
    "clip": choice(0.0, 0.2),
    "high_only": st.booleans(),
    "scope": choice("trajectory", "prompt", "batch"),
}
"""Options of the scorers that look at the likelihood gain."""
ODDS = {
    "entropy_weight": choice(0.0, 0.2, 2.0),
    "window": choice(1, 2, 20),
    "entropy_scale": choice(1.0, 11.93),
}
"""Options of the scorers that draw behind tool results."""

SCORERS = {
    "BalancedEntropy": ScorerDefinition(
        scorers.balanced_entropy,
        {**ODDS, "penalty": choice(0.0, 0.05, 0.5), "threshold": choice(0.2, 0.5)},
        is_random=True,
    ),
    "BranchingScore": ScorerDefinition(
        scorers.branching_score,
        {**GAIN, "strict": st.booleans()},
    ),
    "Entropy": ScorerDefinition(scorers.entropy, {}),
    "FunctionScorer": ScorerDefinition(
        scorers.surprise,
        {"function": choice("tests.scorers.functions:surprise"), "options": choice({}, {"scale": 2.0})},
    ),
    "HindsightDivergence": ScorerDefinition(
        scorers.hindsight_divergence,
        {
            "answer": choice("\nThe correct answer is {answer}.", "It is {answer}, {answer}"),
            "verdict": choice("\nReward {reward}.\n", ""),
        },
    ),
    "InformationGain": ScorerDefinition(scorers.information_gain, {"opening": choice("<answer>", "")}),
    "LikelihoodGain": ScorerDefinition(scorers.likelihood_gain_alone, GAIN),
    "NoBranching": ScorerDefinition(scorers.no_branching, {}),
    "Oracle": ScorerDefinition(
        scorers.oracle,
        {"influence": choice("tests.scorers.functions:influence"), "options": choice({}, {"scale": 2.0})},
    ),
    "Position": ScorerDefinition(scorers.position, {"prefer": choice("early", "middle", "late")}),
    "RandomPosition": ScorerDefinition(scorers.random_position, {}, is_random=True),
    "SegmentCut": ScorerDefinition(
        scorers.segment_cut, {"probability": choice(0.3, 0.9, 1.0), "interval": choice(1, 2, 5)}
    ),
    "Surprisal": ScorerDefinition(scorers.surprisal, {}),
    "ToolBoundary": ScorerDefinition(
        scorers.tool_boundary, {**ODDS, "probability": choice(0.0, 0.3, 1.0)}, is_random=True
    ),
    "TreeUniform": ScorerDefinition(scorers.tree_uniform, {}, is_random=True),
}

ADVANTAGES = {
    "AnchorStateAdvantage": AdvantageDefinition(
        advantages.anchor_state_advantage,
        {"weight": choice(0.0, 1.0, 2.0), "discount": choice(0.0, 0.5, 1.0), "std": STD, "state_key": choice(None)},
        sums_to_zero={"weight": 0.0},
        flat_is_zero={"discount": 1.0},
    ),
    "DualGroupAdvantage": AdvantageDefinition(
        advantages.dual_group_advantage, {"std": STD}, sums_to_zero={}, with_branches=False
    ),
    "EntropyAwareAdvantage": AdvantageDefinition(
        advantages.entropy_aware_advantage, {"std": STD, "weight": choice(0.0, 0.2, 1.0)}, sums_to_zero={"weight": 0.0}
    ),
    "GlobalBatchAdvantage": AdvantageDefinition(
        advantages.global_batch_advantage, {}, sums_to_zero={}, across_prompts=True
    ),
    "GroupAdvantage": AdvantageDefinition(advantages.group_advantage, {"std": STD}, sums_to_zero={}),
    "InformationGainAdvantage": AdvantageDefinition(
        advantages.information_gain_advantage,
        {
            "discount": choice(0.0, 0.5, 1.0),
            "std": STD,
            "normalization": choice("joint", "separate"),
            "opening": choice("<answer>", "="),
        },
        sums_to_zero=None,
        flat_is_zero=None,
    ),
    "LeaveOneOut": AdvantageDefinition(advantages.leave_one_out, {}, sums_to_zero={}),
    "NodeValueAdvantage": AdvantageDefinition(
        advantages.node_value_advantage,
        {"temperature": choice(0.1, 1.0, math.inf)},
        sums_to_zero={"temperature": math.inf},
        with_branches=False,
    ),
    "ProceduralAdvantage": AdvantageDefinition(
        advantages.procedural_advantage, {"std": STD}, sums_to_zero={}, with_branches=False
    ),
    "SegmentAdvantage": AdvantageDefinition(
        advantages.segment_advantage,
        {"max_probability": choice(0.3, 0.9, 1.0)},
        sums_to_zero={"max_probability": 1.0},
        with_branches=False,
    ),
    "SharedPrefixAdvantage": AdvantageDefinition(advantages.shared_prefix_advantage, {"std": STD}, sums_to_zero={}),
    "SiblingAdvantage": AdvantageDefinition(advantages.sibling_advantage, {}, sums_to_zero={}, with_branches=False),
    "TreeAdvantage": AdvantageDefinition(advantages.tree_advantage, {"std": STD}, sums_to_zero={}),
}

COMMON = {
    "clip_low": choice(0.1, 0.2, 1.0),
    "clip_high": choice(0.1, 0.28),
    "dual_clip": choice(None, 1.5, 3.0),
    "ratio_to": choice("update", "sampling"),
    "behavior_correction": choice("truncate", "mask", "off"),
    "behavior_cap": choice(1.1, 2.0),
    "kl": choice("abs", "k2", "k3"),
    "kl_coef": choice(0.0, 0.1),
    "entropy_coef": choice(0.0, 0.05),
    "aggregation": choice("token-mean", "sequence-mean", "sequence-sum", "constant"),
    "aggregation_length": choice(8),
    "rows": choice("trained", "all"),
}
"""Options of every surrogate loss."""

LOSSES = {
    "ClipBalancedLoss": LossDefinition(losses.clip_balanced, {}),
    "ClippedImportanceLoss": LossDefinition(
        losses.clipped_importance, {"clip_high": choice(0.1, 4.0), "dual_clip": choice(None)}
    ),
    "ClippedLoss": LossDefinition(losses.clipped, {}),
    "ProceduralLoss": LossDefinition(
        losses.procedural,
        {
            "future_weight": choice(0.0, 1.0),
            "normalized": st.booleans(),
            "future_half_life": choice(1e-6, 2.0, 64.0, float("inf")),
            "future_clip": choice(0.0, 0.2),
            "high_only": st.booleans(),
            "safety_threshold": choice(None, 1.2, 6.0),
            "sequence_filter": st.booleans(),
        },
        keeps=losses.has_not_run_away,
    ),
    "SequenceClippedLoss": LossDefinition(losses.sequence_clipped, {"clip_low": choice(0.05, 0.2)}),
}


def consistent(options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives up the options of a component that exclude others."""
    changed = dict(options)
    if options.get("aggregation", "constant") != "constant":
        changed["aggregation_length"] = None
    if options.get("sequence_filter") and options["dual_clip"] is None:
        changed["sequence_filter"] = False
    return changed


SUMS_TO_ZERO = [name for name, definition in ADVANTAGES.items() if definition.sums_to_zero is not None]
FLAT_IS_ZERO = [name for name, definition in ADVANTAGES.items() if definition.flat_is_zero is not None]
