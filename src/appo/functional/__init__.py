"""Pure tensor maths: no state, no configuration, no trainer."""

from appo.functional.aggregate import Aggregation, aggregation_weights
from appo.functional.branch_points import ChosenPoints, Scope, select_branch_points
from appo.functional.credit import prefix_credit, shared_prefix_mean
from appo.functional.divergence import kl_estimate
from appo.functional.forks import Segment, segments, softmax_mean
from appo.functional.groups import Std, group_standardize, standardize_by
from appo.functional.influence import RewardVariance, bootstrap_variance, influence_p_values, reward_variance
from appo.functional.linear_log_probs import LogitTransform, chunk_bytes, linear_log_probs
from appo.functional.log_probs import predicting_positions, scatter_scored, token_log_probs
from appo.functional.masked import masked_mean, masked_standardize, masked_std
from appo.functional.ranking import average_ranks, rank_correlation, top_precision, top_shares
from appo.functional.returns import MAX_LOG_RATIO, discounted_suffix_sum, future_likelihood_gain
from appo.functional.surrogate import (
    ClipEvents,
    clip_balanced_surrogate,
    clip_events,
    clipped_importance_surrogate,
    dual_clip_surrogate,
    future_likelihood_weight,
    rows_near_behavior,
    rows_within_dual_clip,
    sequence_log_ratio,
    truncated_importance_weight,
)
from appo.functional.trees import first_fork, shared_mean, token_owners, tree_roots
from appo.functional.turns import NO_TURN, penalized_draws, turn_numbers, turn_openings, turn_starts

__all__ = [
    "MAX_LOG_RATIO",
    "NO_TURN",
    "Aggregation",
    "ChosenPoints",
    "ClipEvents",
    "LogitTransform",
    "RewardVariance",
    "Scope",
    "Segment",
    "Std",
    "aggregation_weights",
    "average_ranks",
    "bootstrap_variance",
    "chunk_bytes",
    "clip_balanced_surrogate",
    "clip_events",
    "clipped_importance_surrogate",
    "discounted_suffix_sum",
    "dual_clip_surrogate",
    "first_fork",
    "future_likelihood_gain",
    "future_likelihood_weight",
    "group_standardize",
    "influence_p_values",
    "kl_estimate",
    "linear_log_probs",
    "masked_mean",
    "masked_standardize",
    "masked_std",
    "penalized_draws",
    "predicting_positions",
    "prefix_credit",
    "rank_correlation",
    "reward_variance",
    "rows_near_behavior",
    "rows_within_dual_clip",
    "scatter_scored",
    "segments",
    "select_branch_points",
    "sequence_log_ratio",
    "shared_mean",
    "shared_prefix_mean",
    "softmax_mean",
    "standardize_by",
    "token_log_probs",
    "token_owners",
    "top_precision",
    "top_shares",
    "tree_roots",
    "truncated_importance_weight",
    "turn_numbers",
    "turn_openings",
    "turn_starts",
]
