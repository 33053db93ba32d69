import re
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.functional import masked_standardize, turn_starts
from appo.scorers import (
    SCORERS,
    BalancedEntropy,
    BranchingScore,
    Entropy,
    LikelihoodGain,
    NoBranching,
    RandomPosition,
    ToolBoundary,
    TreeUniform,
)

INF = float("inf")
RANDOM = {"BalancedEntropy", "RandomPosition", "ToolBoundary", "TreeUniform"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_row(log_ratio: list[float], entropies: list[float]) -> TrajectoryBatch:
    """A single trajectory behind a prompt of one token."""
    ratios, length = torch.tensor([[0.0, *log_ratio]]), len(log_ratio) + 1
    return TrajectoryBatch(
        token_ids=torch.arange(length).unsqueeze(0),
        lengths=torch.tensor([length]),
        response_mask=torch.tensor([[False] + [True] * (length - 1)]),
        behavior_log_probs=torch.full((1, length), -1.0),
        old_log_probs=ratios - 1.0,
        entropies=torch.tensor([[0.0, *entropies]]),
        rewards=torch.tensor([float("nan")]),
        group=torch.tensor([0]),
        parent=torch.tensor([NO_PARENT]),
        branch_position=torch.tensor([NO_PARENT]),
        branch_score=torch.zeros(1),
    )


def permuted(batch: TrajectoryBatch, rows: Tensor) -> TrajectoryBatch:
    return replace(batch, **{f.name: getattr(batch, f.name)[rows] for f in fields(batch)})


@pytest.mark.parametrize("name", SCORERS)
def test_only_sampled_tokens_may_branch(name, batch):
    scores = SCORERS[name]()(batch, generator())
    assert scores.values.shape == batch.token_ids.shape
    assert (scores.values[~batch.response_mask] == -INF).all()
    sampled = scores.values[batch.response_mask]
    assert (sampled.isfinite() | (sampled == -INF)).all()
    if scores.at_turns:
        assert (scores.values[batch.response_mask & ~turn_starts(batch.response_mask)] == -INF).all()
    if scores.preferred is not None:
        assert scores.preferred.dtype == torch.bool
        assert not scores.preferred[~batch.response_mask].any()
    assert all(factor.shape == batch.token_ids.shape for factor in scores.factors.values())


@pytest.mark.parametrize("name", sorted(set(SCORERS) - RANDOM))
def test_rows_do_not_depend_on_their_order(name, batch):
    rows = torch.tensor([3, 1, 5, 0, 4, 2])
    scores, moved = (SCORERS[name]()(b, generator()) for b in (batch, permuted(batch, rows)))
    torch.testing.assert_close(moved.values, scores.values[rows])


@pytest.mark.parametrize("name", SCORERS)
def test_what_stands_behind_the_mask_does_not_leak(name, batch):
    hidden = ("behavior_log_probs", "old_log_probs", "entropies")
    dirty = {field: getattr(batch, field).where(batch.response_mask, float("nan")) for field in hidden}
    scores, same = (SCORERS[name]()(b, generator()) for b in (batch, replace(batch, **dirty)))
    torch.testing.assert_close(same.values, scores.values)


def test_branching_score_by_hand():
    batch = one_row([0.02, -0.01, 0.05, 0.03], [0.5, 2.0, 0.1, 1.5])
    # gains exp(0.09), exp(0.07), exp(0.08), exp(0.03)
    # z(entropy) = (-.6912, 1.2837, -1.2179, .6254), z(gain) = (.9970, .0995, .5460, -1.6425)
    scores = BranchingScore()(batch, generator())
    expected = torch.tensor([[-INF, -0.6891, 0.1277, -0.6649, -1.0272]])
    torch.testing.assert_close(scores.values, expected, atol=1e-4, rtol=0.0)
    assert scores.preferred.tolist() == [[False, False, True, False, False]]
    torch.testing.assert_close(scores.factors["entropy"], batch.entropies)
    expected_gain = torch.tensor([1.094174, 1.072508, 1.083287, 1.030455])
    torch.testing.assert_close(scores.factors["likelihood_gain"][0, 1:], expected_gain, atol=1e-6, rtol=0.0)


def test_two_negative_factors_are_not_preferred():
    scores = BranchingScore()(one_row([0.1, -0.1], [2.0, 1.0]), generator())
    # gains 1 and exp(-0.1): z = (1, -1), as the entropies
    torch.testing.assert_close(scores.values[0, 1:], torch.ones(2), atol=1e-4, rtol=0.0)
    assert scores.preferred[0].tolist() == [False, True, False]


@pytest.mark.parametrize("log_ratio", [0.0, 1e-6])
def test_an_unchanged_policy_is_scored_by_entropy_alone(log_ratio):
    scores = BranchingScore()(one_row([log_ratio, -log_ratio, log_ratio], [1.0, 2.0, 3.0]), generator())
    root = 1.5**0.5  # 1 / std of (1, 2, 3)
    torch.testing.assert_close(scores.values, torch.tensor([[-INF, -root, 0.0, root]]), atol=1e-5, rtol=0.0)
    assert scores.preferred[0].tolist() == [False, False, False, True]


def test_each_row_falls_back_on_its_own(batch):
    unchanged = batch.old_log_probs.clone()
    unchanged[1] = batch.behavior_log_probs[1]
    scores = BranchingScore()(replace(batch, old_log_probs=unchanged), generator()).values
    full = BranchingScore()(batch, generator()).values
    by_entropy = BranchingScore()(replace(batch, old_log_probs=batch.behavior_log_probs), generator()).values
    torch.testing.assert_close(scores[1], by_entropy[1])
    torch.testing.assert_close(scores[[0, 2, 3]], full[[0, 2, 3]])
    assert not torch.allclose(full[1, 1:3], by_entropy[1, 1:3])


def test_without_the_fallback_an_unchanged_policy_scores_0():
    scores = BranchingScore(entropy_fallback=False)(one_row([0.0, 0.0], [1.0, 2.0]), generator())
    assert scores.values[0, 1:].tolist() == [0.0, 0.0]
    assert not scores.preferred.any()


def test_the_released_rounding_finds_spread_where_there_is_none():
    # Ten gains of 1.2: their float32 mean is one unit in the last place below them.
    batch = one_row([0.0] * 9 + [1.0], [float(i) for i in range(10)])
    options = {"entropy_fallback": False}
    assert (BranchingScore(**options)(batch, generator()).values[0, 1:] == 0).all()
    released = BranchingScore(**options, released_rounding=True)(batch, generator())
    assert released.values[0, -1] > 0.1
    assert released.preferred[0, -1]


def test_without_the_strict_rule_no_position_is_preferred(batch):
    assert BranchingScore(strict=False)(batch, generator()).preferred is None


def test_a_scope_decides_whose_tokens_are_compared(batch):
    rows, positions = batch.response_mask.nonzero(as_tuple=True)
    gain = LikelihoodGain()(batch, generator()).factors["likelihood_gain"]
    groups = {"trajectory": torch.arange(6), "prompt": batch.group, "batch": torch.zeros(6)}
    for scope, group in groups.items():
        values = LikelihoodGain(scope=scope)(batch, generator()).values
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            pool = gain[(group == group[row]).unsqueeze(-1) & batch.response_mask].double()
            expected = (gain[row, position] - pool.mean()) / (pool.std(correction=0) + 1e-6)
            assert values[row, position].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_branching_score_is_the_product_of_its_factors_alone(batch):
    product = BranchingScore(entropy_fallback=False)(batch, generator()).values
    gain = LikelihoodGain()(batch, generator()).values[batch.response_mask]
    entropy = masked_standardize(batch.entropies, batch.response_mask)[batch.response_mask]
    torch.testing.assert_close(product[batch.response_mask], gain * entropy)


def two_results(entropies: list[float], rows: int = 1) -> TrajectoryBatch:
    """Trajectories of three turns of two tokens each, one token of prompt and of every tool result between them."""
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1, 1]], dtype=torch.bool).expand(rows, -1)
    values = torch.zeros(rows, 9)
    values[mask] = torch.tensor(entropies * rows)
    return TrajectoryBatch(
        token_ids=torch.arange(9).expand(rows, -1),
        lengths=torch.full((rows,), 9),
        response_mask=mask,
        behavior_log_probs=-1.0 * mask,
        old_log_probs=-1.0 * mask,
        entropies=values,
        rewards=torch.full((rows,), float("nan")),
        group=torch.zeros(rows, dtype=torch.int64),
        parent=torch.full((rows,), NO_PARENT),
        branch_position=torch.full((rows,), NO_PARENT),
        branch_score=torch.zeros(rows),
    )


def test_a_tool_boundary_scores_the_entropy_change_behind_each_result_by_hand():
    batch = two_results([1.0, 2.0, 4.0, 5.0, 0.5, 0.5])
    scorer = ToolBoundary(entropy_weight=1.0, entropy_scale=2.0, probability=0.5)
    # Openings 3, 9, 1 nats: 1.5, 4.5, 0.5 in units of 2; changes 0, 3, -1. P = clip(0.5 + 3) = 1, clip(0.5 - 1) = 0.
    scores = scorer(batch, generator())
    torch.testing.assert_close(scores.factors["entropy_change"], torch.tensor([[0.0, 0, 0, 0, 3, 3, 0, -1, -1]]))
    assert scores.values.tolist() == [[-INF, 0.0, -INF, -INF, 1.0, -INF, -INF, -INF, -INF]]
    assert scores.preferred.nonzero().tolist() == [[0, 4]]


def test_a_tool_boundary_counts_only_the_window_of_a_turn():
    batch = two_results([1.0, 2.0, 4.0, 5.0, 0.5, 0.5])
    change = ToolBoundary(entropy_scale=1.0, window=1)(batch, generator()).factors["entropy_change"]
    assert change.tolist() == [[0, 0, 0, 0, 3, 3, 0, -0.5, -0.5]]


def test_a_tool_boundary_branches_as_often_as_its_probability_says():
    batch = two_results([1.0] * 6, rows=4000)
    drawn = ToolBoundary(probability=0.3)(batch, generator()).preferred
    # 8,000 draws of 0.3: standard deviation 0.0051
    assert drawn[:, [4, 7]].float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_earlier_results_come_before_later_ones_and_fresh_trajectories_last():
    values = ToolBoundary(probability=1.0)(two_results([1.0] * 6), generator()).values[0]
    assert values[[4, 7, 1]].tolist() == [1.0, 0.5, 0.0]


def test_balanced_entropy_makes_branches_in_a_row_harder():
    batch = two_results([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], rows=3)
    # Changes of 2 and a weight of 5 make the odds 10 + u before the penalty; after two in a row nothing is left.
    scorer = BalancedEntropy(entropy_weight=5.0, entropy_scale=1.0, penalty=0.5)
    drawn = scorer(batch, generator()).preferred
    # In the order of drawing: first results of rows 0, 1, 2, then second ones; every third draw is refused.
    assert drawn[:, 4].tolist() == [True, True, False]
    assert drawn[:, 7].tolist() == [True, True, False]


def test_balanced_entropy_counts_each_prompt_on_its_own():
    batch = replace(two_results([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], rows=3), group=torch.tensor([0, 1, 0]))
    drawn = BalancedEntropy(entropy_weight=5.0, entropy_scale=1.0, penalty=0.5)(batch, generator()).preferred
    # Prompt 0: rows 0, 2, 0, 2, of which the third is refused. Prompt 1: row 1 twice.
    assert drawn[:, 4].tolist() == [True, True, True]
    assert drawn[:, 7].tolist() == [False, True, True]


def test_tree_nodes_are_the_prompt_and_every_tool_result_equally_likely():
    batch = two_results([1.0] * 6, rows=3000)
    values = TreeUniform()(batch, generator()).values
    assert (values > -INF).nonzero()[:3].tolist() == [[0, 1], [0, 4], [0, 7]]
    best = values.argmax(-1)
    # 3,000 draws of a third: standard deviation 0.0086
    for position in (1, 4, 7):
        assert (best == position).float().mean().item() == pytest.approx(1 / 3, abs=0.035)


def test_entropy_scores_are_the_entropies(batch):
    scores = Entropy()(batch, generator())
    torch.testing.assert_close(scores.values[batch.response_mask], batch.entropies[batch.response_mask])


def test_random_positions_follow_the_generator_and_nothing_else(batch):
    scores = [RandomPosition()(batch, generator(seed)).values for seed in (0, 0, 1)]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_no_branching_refuses_every_position(batch):
    assert (NoBranching()(batch, generator()).values == -INF).all()


@pytest.mark.parametrize(
    ("scorer", "option", "value", "message"),
    [
        (BranchingScore, "discount", 1.5, r"discount must lie in [0, 1], got 1.5"),
        (BranchingScore, "clip", 1.0, r"clip must lie in [0, 1), got 1.0"),
        (BranchingScore, "clip", -0.1, r"clip must lie in [0, 1), got -0.1"),
        (BranchingScore, "min_spread", -1.0, "min_spread must not be negative, got -1.0"),
        (BranchingScore, "min_spread", float("nan"), "min_spread must not be negative, got nan"),
        (BranchingScore, "scope", "row", "scope must be trajectory, prompt, batch, got 'row'"),
        (LikelihoodGain, "scope", "row", "scope must be trajectory, prompt, batch, got 'row'"),
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


def test_the_released_rounding_knows_no_wider_scope():
    with pytest.raises(ValueError, match="scope must be trajectory with released_rounding=true, got prompt"):
        BranchingScore(released_rounding=True, scope="prompt")
