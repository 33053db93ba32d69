import torch

from appo.losses import ClipBalancedLoss, ClippedImportanceLoss, ClippedLoss, SequenceClippedLoss
from tests.losses.train_batches import live, train_batch


def test_clipped_loss_equals_its_definition():
    batch = train_batch()
    log_probs, entropies = live(batch)
    loss, metrics = ClippedLoss(clip_low=0.1, clip_high=0.3, behavior_cap=1.5)(log_probs, entropies, batch)
    terms, high = [], 0
    for row, t in batch.response_mask.nonzero().tolist():
        r = (log_probs[row, t] - batch.old_log_probs[row, t]).exp()
        a = batch.advantages[row, t]
        weight = (batch.old_log_probs[row, t] - batch.behavior_log_probs[row, t]).exp().clamp(max=1.5)
        terms.append(-torch.min(r * a, r.clamp(0.9, 1.3) * a) * weight)
        high += bool(a > 0 and r > 1.3)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    torch.testing.assert_close(metrics["policy_loss"], loss.detach())
    torch.testing.assert_close(metrics["clip_fraction_high"].item(), high / len(terms), atol=1e-6, rtol=0.0)


def test_sequence_clipped_loss_equals_its_definition():
    batch = train_batch()
    log_probs, entropies = live(batch)
    options = {"clip_low": 0.1, "clip_high": 0.3, "behavior_correction": "off"}
    loss, _ = SequenceClippedLoss(**options)(log_probs, entropies, batch)
    rows, expected = [], torch.zeros_like(log_probs)
    for row in range(len(batch)):
        tokens = batch.response_mask[row].nonzero()[:, 0]
        s = (log_probs[row, tokens] - batch.old_log_probs[row, tokens]).mean().exp().detach()
        terms = [-torch.min(s * a, s.clamp(0.9, 1.3) * a) for a in batch.advantages[row, tokens]]
        rows.append(torch.stack(terms).mean())
        for t in tokens.tolist():
            a = batch.advantages[row, t]
            counts = s <= 1.3 if a > 0 else s >= 0.9
            expected[row, t] = -s * a * counts / len(tokens) / len(batch)
    torch.testing.assert_close(loss.detach(), torch.stack(rows).mean())
    loss.backward()
    torch.testing.assert_close(log_probs.grad, expected)


def test_clipped_importance_loss_equals_its_definition():
    batch = train_batch()
    log_probs, entropies = live(batch)
    loss, _ = ClippedImportanceLoss(clip_high=0.3, behavior_correction="off")(log_probs, entropies, batch)
    weight = (log_probs - batch.old_log_probs).detach().exp().clamp(max=1.3)
    terms = -(weight * batch.advantages * log_probs)[batch.response_mask]
    torch.testing.assert_close(loss, terms.mean())
    loss.backward()
    expected = -(weight * batch.advantages * batch.response_mask) / batch.response_mask.sum()
    torch.testing.assert_close(log_probs.grad, expected)


def test_clip_balanced_loss_has_the_value_of_the_clipped_one_and_a_bounded_gradient_where_that_has_none():
    batch = train_batch()
    log_probs, entropies = live(batch)
    clipped = ClippedLoss(behavior_correction="off")(log_probs, entropies, batch)[0]
    (without,) = torch.autograd.grad(clipped, log_probs)
    balanced = ClipBalancedLoss(behavior_correction="off")(log_probs, entropies, batch)[0]
    (gradient,) = torch.autograd.grad(balanced, log_probs)
    torch.testing.assert_close(balanced, clipped)
    ratio = (log_probs - batch.old_log_probs).detach().exp()
    cut = (batch.advantages > 0) & (ratio > 1.2)
    assert cut.sum() > 3
    assert not without[cut].any()
    torch.testing.assert_close(gradient[cut], -1.2 * batch.advantages[cut] / batch.response_mask.sum())
    torch.testing.assert_close(gradient[~cut], without[~cut])
