from dataclasses import replace

import pytest
import torch

from appo.losses import ClippedLoss, ProceduralLoss, SequenceClippedLoss
from tests.losses.train_batches import live, train_batch


def test_the_bonus_is_subtracted_with_the_mean_entropy():
    batch = train_batch()
    log_probs, entropies = live(batch)
    plain, metrics = ClippedLoss()(log_probs, entropies, batch)
    loss, _ = ClippedLoss(entropy_coef=0.3)(log_probs, entropies, batch)
    mean = entropies[batch.response_mask].mean()
    torch.testing.assert_close(loss, plain - 0.3 * mean)
    torch.testing.assert_close(metrics["entropy"], mean.detach())


def test_rows_far_from_the_policy_that_sampled_are_left_out_and_still_divided_by():
    batch = train_batch(num_rows=3)
    far = batch.behavior_log_probs.clone()
    near, far[1] = batch.old_log_probs + 0.1, batch.old_log_probs[1] - 1.0
    mixed = torch.stack([near[0], far[1], near[2]])
    log_probs, entropies = live(batch)
    loss_fn = ClippedLoss(behavior_correction="mask", behavior_cap=1.5)
    loss, metrics = loss_fn(log_probs, entropies, replace(batch, behavior_log_probs=mixed))
    kept = batch.response_mask.clone()
    kept[1] = False
    terms = []
    for row, t in kept.nonzero().tolist():
        r, a = (log_probs[row, t] - batch.old_log_probs[row, t]).exp(), batch.advantages[row, t]
        terms.append(-torch.min(r * a, r.clamp(0.8, 1.2) * a))
    torch.testing.assert_close(loss, torch.stack(terms).sum() / batch.response_mask.sum())
    share = kept.sum() / batch.response_mask.sum()
    torch.testing.assert_close(metrics["behavior_weight"].item(), share.item(), atol=1e-6, rtol=0.0)


def test_only_a_divergence_needs_a_reference():
    assert not ProceduralLoss().needs_reference
    assert ProceduralLoss(kl_coef=0.001).needs_reference
    batch = replace(train_batch(), ref_log_probs=None)
    with pytest.raises(ValueError, match=r"ref_log_probs must be given with kl_coef=0.1, got None"):
        ClippedLoss(kl_coef=0.1)(*live(batch), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.1}, r"clip_low must lie in \[0, 1\], got 1.1"),
        ({"clip_high": -0.1}, "clip_high must not be negative, got -0.1"),
        ({"dual_clip": 1.1}, "dual_clip must be above 1 \\+ clip_high = 1.2, got 1.1"),
        ({"behavior_cap": 0.5}, "behavior_cap must be at least 1, got 0.5"),
        ({"behavior_correction": "cut"}, "behavior_correction must be truncate, mask or off, got 'cut'"),
        ({"kl": "k1"}, "kl must be abs, k2 or k3, got 'k1'"),
        ({"kl_coef": -1.0}, "kl_coef must not be negative, got -1.0"),
        ({"aggregation": "mean"}, "aggregation must be token-mean, .*, got 'mean'"),
        ({"aggregation": "constant"}, "aggregation_length must be given .* got None with aggregation=constant"),
        ({"aggregation_length": 5}, "aggregation_length must be given .* got 5 with aggregation=token-mean"),
        ({"aggregation": "constant", "aggregation_length": 0}, "aggregation_length must be positive, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClippedLoss(**options)


def test_the_shares_of_tokens_are_the_loss_however_a_step_is_cut(batch):
    generator = torch.Generator().manual_seed(1)
    log_probs = (
        batch.old_log_probs + 0.3 * torch.randn(batch.old_log_probs.shape, generator=generator) * batch.response_mask
    )
    batch = replace(batch, advantages=torch.randn(batch.old_log_probs.shape, generator=generator) * batch.response_mask)
    for loss in (ClippedLoss(), ClippedLoss(aggregation="sequence-mean"), ProceduralLoss(), SequenceClippedLoss()):
        total, shares = 0.0, 0.0
        for micro in replace(batch, ref_log_probs=log_probs).micro_batches(12):
            own = micro.ref_log_probs
            total += loss(own, torch.zeros_like(own), micro)[1]["policy_loss"]
            values = loss.token_values(own, micro)
            shares += values["loss_shares"].sum() / micro.num_tokens
            assert not values["loss_shares"][~micro.trained].any()
        torch.testing.assert_close(shares, total)
    values = ClippedLoss().token_values(log_probs, batch)
    torch.testing.assert_close(values["importance_weights"], (log_probs - batch.old_log_probs).exp())
