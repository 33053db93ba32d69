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
    scores = BranchingScore(half_life=None)(batch, context())
    expected = torch.tensor([[-INF, -0.6891, 0.1277, -0.6649, -1.0272]])
    torch.testing.assert_close(scores.values, expected, atol=1e-4, rtol=0.0)
    assert scores.preferred.tolist() == [[False, False, True, False, False]]
    torch.testing.assert_close(scores.factors["entropy"], batch.entropies)
    expected_gain = torch.tensor([1.094174, 1.072508, 1.083287, 1.030455])
    torch.testing.assert_close(scores.factors["likelihood_gain"][0, 1:], expected_gain, atol=1e-6, rtol=0.0)


def test_two_negative_factors_are_not_preferred():
    scores = BranchingScore(half_life=None)(one_row([0.1, -0.1], [2.0, 1.0]), context())
    # gains 1 and exp(-0.1): z = (1, -1), as the entropies
    torch.testing.assert_close(scores.values[0, 1:], torch.ones(2), atol=1e-4, rtol=0.0)
    assert scores.preferred[0].tolist() == [False, True, False]


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.03, 3.0])
def test_a_row_that_the_same_version_sampled_is_scored_by_entropy_alone_however_engine_and_trainer_differ(noise):
    row = replace(one_row([noise, -noise, noise], [1.0, 2.0, 3.0]), evaluated_by=torch.tensor([0]))
    scores = BranchingScore()(row, context())
    root = 1.5**0.5  # 1 / std of (1, 2, 3)
    torch.testing.assert_close(scores.values, torch.tensor([[-INF, -root, 0.0, root]]), atol=1e-5, rtol=0.0)
    assert scores.preferred[0].tolist() == [False, False, False, True]
    assert (scores.factors["likelihood_gain"] == 1.0).all()
    assert not scores.factors["gain_saturated"].any()
    assert LikelihoodGain()(row, context()).values[0, 1:].tolist() == [0.0] * 3


def test_each_row_has_a_version_of_its_own(batch):
    batch = replace(batch, evaluated_by=torch.tensor([1, 0, 1, 1, 1, 1]))
    scores = BranchingScore()(batch, context()).values
    full, by_entropy = (
        BranchingScore()(replace(batch, evaluated_by=torch.full((6,), version)), context()).values for version in (1, 0)
    )
    torch.testing.assert_close(scores[1], by_entropy[1])
    torch.testing.assert_close(scores[[0, 2, 3]], full[[0, 2, 3]])
    assert not torch.allclose(full[1, 1:3], by_entropy[1, 1:3])


def test_tokens_that_the_evaluating_version_sampled_add_nothing_to_the_gain():
    row = replace(one_row([0.1, 0.2, 0.4], [1.0, 2.0, 3.0]), policy_versions=torch.tensor([[-1, 0, 1, 1]]))
    gain = LikelihoodGain(half_life=None)(row, context()).factors["likelihood_gain"]
    # Only the first token is of another version: gains exp(0.1), 1, 1.
    torch.testing.assert_close(gain[0, 1:], torch.tensor([1.105171, 1.0, 1.0]))


def test_the_policy_that_sampled_is_the_trainers_where_its_log_probs_were_taken():
    row = one_row([0.1, -0.1], [2.0, 1.0])
    engine = row.behavior_log_probs + 0.05
    taken = replace(row, behavior_log_probs=engine, sampling_log_probs=row.behavior_log_probs)
    expected, same, other = (
        LikelihoodGain()(each, context()).factors["likelihood_gain"]
        for each in (row, taken, replace(row, behavior_log_probs=engine))
    )
    torch.testing.assert_close(same, expected)
    assert not torch.allclose(other, expected)


def test_a_gain_halves_the_log_ratios_behind_it_every_half_life():
    gain = LikelihoodGain(half_life=1.0, clip=0.0)(one_row([0.0, 0.2, 0.4], [1.0, 1.0, 1.0]), context())
    # 0 + 0.2 / 2 + 0.4 / 4; 0.2 + 0.4 / 2; 0.4
    torch.testing.assert_close(gain.factors["likelihood_gain"][0, 1:], torch.tensor([0.2, 0.4, 0.4]).exp())


def test_the_share_of_gains_on_a_bound_is_a_factor():
    row = one_row([-0.5, 0.1, 0.3, -0.1], [1.0, 2.0, 3.0, 4.0])
    # gains exp(-0.2), exp(0.3), exp(0.2), exp(-0.1): the second and the third lie above 1.2.
    saturated = BranchingScore(half_life=None)(row, context()).factors["gain_saturated"]
    assert saturated.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0]]
    high_only = BranchingScore(half_life=None, high_only=True)(row, context()).factors
    assert high_only["gain_saturated"].tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0]]
    torch.testing.assert_close(high_only["likelihood_gain"][0, 1:], torch.tensor([1.0, 1.2, 1.2, 1.0]))


def test_without_the_strict_rule_no_position_is_preferred(batch):
    assert BranchingScore(strict=False)(batch, context()).preferred is None


def test_a_scope_decides_whose_tokens_are_compared(batch):
    batch = replace(batch, evaluated_by=torch.ones(6, dtype=torch.int64))
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
    batch = replace(batch, evaluated_by=torch.ones(6, dtype=torch.int64))
    product = BranchingScore()(batch, context()).values
    gain = LikelihoodGain()(batch, context()).values[batch.response_mask]
    entropy = masked_standardize(batch.entropies, batch.response_mask)[batch.response_mask]
    torch.testing.assert_close(product[batch.response_mask], gain * entropy)


@pytest.mark.parametrize(
    ("scorer", "option", "value", "message"),
    [
        (BranchingScore, "half_life", 0.0, "half_life must be positive or null, got 0.0"),
        (LikelihoodGain, "half_life", float("nan"), "half_life must be positive or null, got nan"),
        (BranchingScore, "clip", 1.0, r"clip must lie in [0, 1), got 1.0"),
        (BranchingScore, "clip", -0.1, r"clip must lie in [0, 1), got -0.1"),
        (BranchingScore, "scope", "row", "scope must be trajectory, prompt, batch, got 'row'"),
        (LikelihoodGain, "scope", "row", "scope must be trajectory, prompt, batch, got 'row'"),
    ],
)
def test_bad_options_are_refused(scorer, option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scorer(**{option: value})
