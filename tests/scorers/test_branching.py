import re
from dataclasses import replace

import pytest
import torch

from appo.functional import masked_standardize
from appo.scorers import BranchingScore, LikelihoodGain
from tests.scorers.scored_batches import INF, context, one_row


def test_branching_score_by_hand():
    batch = one_row([0.02, -0.01, 0.05, 0.03], [0.5, 2.0, 0.1, 1.5])
    # gains exp(0.09), exp(0.07), exp(0.08), exp(0.03)
    # z(entropy) = (-.6912, 1.2837, -1.2179, .6254), z(gain) = (.9970, .0995, .5460, -1.6425)
    scores = BranchingScore()(batch, context())
    expected = torch.tensor([[-INF, -0.6891, 0.1277, -0.6649, -1.0272]])
    torch.testing.assert_close(scores.values, expected, atol=1e-4, rtol=0.0)
    assert scores.preferred.tolist() == [[False, False, True, False, False]]
    torch.testing.assert_close(scores.factors["entropy"], batch.entropies)
    expected_gain = torch.tensor([1.094174, 1.072508, 1.083287, 1.030455])
    torch.testing.assert_close(scores.factors["likelihood_gain"][0, 1:], expected_gain, atol=1e-6, rtol=0.0)


def test_two_negative_factors_are_not_preferred():
    scores = BranchingScore()(one_row([0.1, -0.1], [2.0, 1.0]), context())
    # gains 1 and exp(-0.1): z = (1, -1), as the entropies
    torch.testing.assert_close(scores.values[0, 1:], torch.ones(2), atol=1e-4, rtol=0.0)
    assert scores.preferred[0].tolist() == [False, True, False]


@pytest.mark.parametrize("log_ratio", [0.0, 1e-6])
def test_an_unchanged_policy_is_scored_by_entropy_alone(log_ratio):
    scores = BranchingScore()(one_row([log_ratio, -log_ratio, log_ratio], [1.0, 2.0, 3.0]), context())
    root = 1.5**0.5  # 1 / std of (1, 2, 3)
    torch.testing.assert_close(scores.values, torch.tensor([[-INF, -root, 0.0, root]]), atol=1e-5, rtol=0.0)
    assert scores.preferred[0].tolist() == [False, False, False, True]


def test_each_row_falls_back_on_its_own(batch):
    unchanged = batch.old_log_probs.clone()
    unchanged[1] = batch.behavior_log_probs[1]
    scores = BranchingScore()(replace(batch, old_log_probs=unchanged), context()).values
    full = BranchingScore()(batch, context()).values
    by_entropy = BranchingScore()(replace(batch, old_log_probs=batch.behavior_log_probs), context()).values
    torch.testing.assert_close(scores[1], by_entropy[1])
    torch.testing.assert_close(scores[[0, 2, 3]], full[[0, 2, 3]])
    assert not torch.allclose(full[1, 1:3], by_entropy[1, 1:3])


def test_without_the_fallback_an_unchanged_policy_scores_0():
    scores = BranchingScore(entropy_fallback=False)(one_row([0.0, 0.0], [1.0, 2.0]), context())
    assert scores.values[0, 1:].tolist() == [0.0, 0.0]
    assert not scores.preferred.any()


def test_without_the_strict_rule_no_position_is_preferred(batch):
    assert BranchingScore(strict=False)(batch, context()).preferred is None


def test_a_scope_decides_whose_tokens_are_compared(batch):
    rows, positions = batch.response_mask.nonzero(as_tuple=True)
    gain = LikelihoodGain()(batch, context()).factors["likelihood_gain"]
    groups = {"trajectory": torch.arange(6), "prompt": batch.group, "batch": torch.zeros(6)}
    for scope, group in groups.items():
        values = LikelihoodGain(scope=scope)(batch, context()).values
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            pool = gain[(group == group[row]).unsqueeze(-1) & batch.response_mask].double()
            expected = (gain[row, position] - pool.mean()) / (pool.std(correction=0) + 1e-6)
            assert values[row, position].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_branching_score_is_the_product_of_its_factors_alone(batch):
    product = BranchingScore(entropy_fallback=False)(batch, context()).values
    gain = LikelihoodGain()(batch, context()).values[batch.response_mask]
    entropy = masked_standardize(batch.entropies, batch.response_mask)[batch.response_mask]
    torch.testing.assert_close(product[batch.response_mask], gain * entropy)


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
    ],
)
def test_bad_options_are_refused(scorer, option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scorer(**{option: value})
