from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from appo.batch import NO_PARENT, TrajectoryBatch
from appo.scorers import SCORERS, BranchingScore, Entropy, NoBranching, RandomPosition

INF = float("inf")


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
    assert sampled.isfinite().all() or (sampled == -INF).all()
    if scores.preferred is not None:
        assert scores.preferred.dtype == torch.bool
        assert not scores.preferred[~batch.response_mask].any()
    assert all(factor.shape == batch.token_ids.shape for factor in scores.factors.values())


@pytest.mark.parametrize("name", set(SCORERS) - {"RandomPosition"})
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
    ("option", "value", "message"),
    [
        ("discount", 1.5, r"discount must lie in \[0, 1\], got 1.5"),
        ("clip", 1.0, r"clip must lie in \[0, 1\), got 1.0"),
        ("clip", -0.1, r"clip must lie in \[0, 1\), got -0.1"),
        ("min_spread", -1.0, "min_spread must not be negative, got -1.0"),
        ("min_spread", float("nan"), "min_spread must not be negative, got nan"),
    ],
)
def test_bad_options_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        BranchingScore(**{option: value})
