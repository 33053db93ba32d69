import re
from dataclasses import replace

import pytest
import torch

from appo.scorers import BalancedEntropy, ToolBoundary
from tests.scorers.scored_batches import INF, context, two_results


def test_a_tool_boundary_scores_the_entropy_change_behind_each_result_by_hand():
    batch = two_results([1.0, 2.0, 4.0, 5.0, 0.5, 0.5])
    scorer = ToolBoundary(entropy_weight=1.0, entropy_scale=2.0, probability=0.5)
    # Openings 3, 9, 1 nats: 1.5, 4.5, 0.5 in units of 2; changes 0, 3, -1. P = clip(0.5 + 3) = 1, clip(0.5 - 1) = 0.
    scores = scorer(batch, context())
    torch.testing.assert_close(scores.factors["entropy_change"], torch.tensor([[0.0, 0, 0, 0, 3, 3, 0, -1, -1]]))
    assert scores.values.tolist() == [[-INF, 0.0, -INF, -INF, 1.0, -INF, -INF, -INF, -INF]]
    assert scores.preferred.nonzero().tolist() == [[0, 4]]


def test_a_tool_boundary_counts_only_the_window_of_a_turn():
    batch = two_results([1.0, 2.0, 4.0, 5.0, 0.5, 0.5])
    change = ToolBoundary(entropy_scale=1.0, window=1)(batch, context()).factors["entropy_change"]
    assert change.tolist() == [[0, 0, 0, 0, 3, 3, 0, -0.5, -0.5]]


def test_a_tool_boundary_branches_as_often_as_its_probability_says():
    batch = two_results([1.0] * 6, rows=4000)
    drawn = ToolBoundary(probability=0.3)(batch, context()).preferred
    # 8,000 draws of 0.3: standard deviation 0.0051
    assert drawn[:, [4, 7]].float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_earlier_results_come_before_later_ones_and_fresh_trajectories_last():
    values = ToolBoundary(probability=1.0)(two_results([1.0] * 6), context()).values[0]
    assert values[[4, 7, 1]].tolist() == [1.0, 0.5, 0.0]


def test_balanced_entropy_makes_branches_in_a_row_harder():
    batch = two_results([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], rows=3)
    # Changes of 2 and a weight of 5 make the odds 10 + u before the penalty; after two in a row nothing is left.
    scorer = BalancedEntropy(entropy_weight=5.0, entropy_scale=1.0, penalty=0.5)
    drawn = scorer(batch, context()).preferred
    # In the order of drawing: first results of rows 0, 1, 2, then second ones; every third draw is refused.
    assert drawn[:, 4].tolist() == [True, True, False]
    assert drawn[:, 7].tolist() == [True, True, False]


def test_balanced_entropy_counts_each_prompt_on_its_own():
    batch = replace(two_results([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], rows=3), group=torch.tensor([0, 1, 0]))
    drawn = BalancedEntropy(entropy_weight=5.0, entropy_scale=1.0, penalty=0.5)(batch, context()).preferred
    # Prompt 0: rows 0, 2, 0, 2, of which the third is refused. Prompt 1: row 1 twice.
    assert drawn[:, 4].tolist() == [True, True, True]
    assert drawn[:, 7].tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("scorer", "option", "value", "message"),
    [
        (ToolBoundary, "probability", 1.5, "probability must lie in [0, 1], got 1.5"),
        (ToolBoundary, "window", 0, "window must be positive, got 0"),
        (ToolBoundary, "entropy_weight", -1.0, "entropy_weight must not be negative, got -1.0"),
        (ToolBoundary, "entropy_scale", 0.0, "entropy_scale must be positive, got 0.0"),
        (BalancedEntropy, "penalty", 1.5, "penalty must lie in [0, 1], got 1.5"),
        (BalancedEntropy, "threshold", 0.0, "threshold must lie in (0, 1], got 0.0"),
    ],
)
def test_bad_options_are_refused(scorer, option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scorer(**{option: value})
