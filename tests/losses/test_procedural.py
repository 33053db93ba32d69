from dataclasses import replace

import pytest
import torch

from appo.losses import ClippedLoss, ProceduralLoss
from tests.losses.train_batches import live, runaway_batch, train_batch


def test_procedural_loss_by_hand():
    # One row, two tokens of advantage 1, the policy unchanged: weights 1 + 1 * exp(0) = 2, ratio 1, so the loss is -2.
    batch = replace(
        train_batch(num_rows=1, length=4), advantages=torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    )
    log_probs = batch.old_log_probs.clone().requires_grad_()
    loss, metrics = ProceduralLoss(behavior_correction="off")(log_probs, torch.zeros_like(log_probs), batch)
    loss.backward()
    torch.testing.assert_close(loss.item(), -2.0)
    assert log_probs.grad.tolist() == [[0.0, -1.0, 0.0, -1.0]]
    assert metrics["future_weight"] == metrics["ratio"] == 1.0


@pytest.mark.parametrize("future_weight", [0.5, 1.0])
def test_normalized_advantages_of_an_unchanged_policy_are_as_they_were(future_weight):
    batch = train_batch()
    unchanged = batch.old_log_probs, torch.zeros_like(batch.old_log_probs), batch
    options = {"sequence_filter": False, "behavior_correction": "off"}
    plain = ClippedLoss(clip_high=0.28, dual_clip=3.0, behavior_correction="off")(*unchanged)[0]
    torch.testing.assert_close(
        ProceduralLoss(future_weight=future_weight, **options)(*unchanged)[0], (1 + future_weight) * plain
    )
    torch.testing.assert_close(
        ProceduralLoss(future_weight=future_weight, normalized=True, **options)(*unchanged)[0], plain
    )


def test_without_its_own_terms_the_procedural_loss_is_the_clipped_loss():
    batch = train_batch()
    inputs = live(batch)
    plain = ProceduralLoss(future_weight=0.0, sequence_filter=False)(*inputs, batch)[0]
    torch.testing.assert_close(plain, ClippedLoss(clip_high=0.28, dual_clip=3.0)(*inputs, batch)[0])


def test_rows_that_ran_away_are_left_out_of_numerator_and_denominator():
    batch, log_probs = runaway_batch()
    entropies = torch.zeros(2, 4)
    compute = ProceduralLoss(future_weight=0.0)
    loss, metrics = compute(log_probs, entropies, batch)
    # Row 1 alone: 3 from the dual clip, -1, -1, over its 3 tokens.
    torch.testing.assert_close(loss.item(), 1 / 3)
    assert metrics["filtered_rows"] == 0.5
    torch.testing.assert_close(metrics["dual_clip_fraction"], torch.tensor(0.5))
    # With the totals of a step given, the denominator is theirs.
    torch.testing.assert_close(compute(log_probs, entropies, replace(batch, num_tokens=6))[0].item(), 1 / 6)
    unfiltered = ProceduralLoss(future_weight=0.0, sequence_filter=False)(log_probs, entropies, batch)[0]
    torch.testing.assert_close(unfiltered.item(), (3 + 3 - 1 + 1) / 6)


def test_a_row_that_is_left_out_stays_in_the_divergence():
    batch, log_probs = runaway_batch()
    batch = replace(batch, ref_log_probs=torch.zeros(2, 4))
    compute = ProceduralLoss(kl="abs", kl_coef=1.0)
    loss, metrics = compute(log_probs, torch.zeros(2, 4), batch)
    loss.backward()
    torch.testing.assert_close(metrics["kl"], 3 * torch.tensor(4.0).log() / 6)
    torch.testing.assert_close(log_probs.grad[0], torch.tensor([0.0, 1 / 6, 1 / 6, 0.0]))


def test_a_batch_without_trained_tokens_costs_nothing():
    batch, log_probs = runaway_batch()
    batch = replace(batch, response_mask=torch.zeros(2, 4, dtype=torch.bool))
    loss, metrics = ProceduralLoss()(log_probs, torch.zeros(2, 4), batch)
    loss.backward()
    assert loss == 0
    assert not log_probs.grad.any()
    assert all(value == 0 for value in metrics.values())


def test_a_safety_threshold_changes_gradients_below_the_dual_clip_alone():
    batch, log_probs = runaway_batch()  # two ratios of 4 with a negative advantage

    def gradient(**options: float) -> torch.Tensor:
        # What follows has become likelier: the weight is above 1 and would be brought down.
        later = log_probs.detach().clone()
        later[:, -1] += 0.1
        later.requires_grad_()
        ProceduralLoss(sequence_filter=False, **options)(later, torch.zeros(2, 4), batch)[0].backward()
        return later.grad

    assert torch.equal(gradient(safety_threshold=3.5, dual_clip=3.0), gradient(dual_clip=3.0))
    assert not torch.equal(gradient(safety_threshold=3.5, dual_clip=9.0), gradient(dual_clip=9.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"future_weight": -1.0}, "future_weight must not be negative, got -1.0"),
        ({"future_half_life": 0.0}, "future_half_life must be positive, got 0.0"),
        ({"future_clip": 1.0}, r"future_clip must lie in \[0, 1\), got 1.0"),
        ({"safety_threshold": 0.0}, "safety_threshold must be positive, got 0.0"),
        ({"dual_clip": None}, "dual_clip must be given with sequence_filter=true, got null"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProceduralLoss(**options)
