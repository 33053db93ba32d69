from dataclasses import replace

import pytest
import torch

from appo.core.batch import TrainBatch
from appo.losses import (
    LOSSES,
    ClipBalancedLoss,
    ClippedImportanceLoss,
    ClippedLoss,
    ProceduralLoss,
    SequenceClippedLoss,
)

AGGREGATIONS = ["token-mean", "sequence-mean", "sequence-sum", "constant"]


DIFFERENTIABLE = {
    # What a loss holds constant by design is switched off, or left out of reach, where gradients are checked.
    "ProceduralLoss": {"future_weight": 0.0},
    "ClippedLoss": {"dual_clip": 3.0},
    "SequenceClippedLoss": {"clip_low": 0.2, "clip_high": 0.2, "behavior_correction": "off"},
    "ClippedImportanceLoss": {"clip_low": 0.0, "clip_high": 0.0},
    "ClipBalancedLoss": {"clip_high": 100.0},
}


def train_batch(num_rows: int = 7, length: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64) -> TrainBatch:
    """Rows of different lengths with tool output in the middle; ratios far enough apart to reach every clip."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(num_rows) % (length - 3) + 4
    mask = torch.arange(length) < lengths.unsqueeze(-1)
    mask[:, 0] = False
    mask[:, 2] = False
    log_probs = -torch.rand(3, num_rows, length, generator=generator, dtype=dtype) * mask
    return TrainBatch(
        token_ids=torch.randint(0, 9, (num_rows, length), generator=generator),
        lengths=lengths,
        response_mask=mask,
        behavior_log_probs=log_probs[0],
        old_log_probs=log_probs[1],
        advantages=torch.randn(num_rows, length, generator=generator, dtype=dtype) * mask,
        ref_log_probs=log_probs[2],
    )


def live(batch: TrainBatch, spread: float = 0.8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs at some distance from the old ones, and entropies, both to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = batch.token_ids.shape, batch.old_log_probs.dtype
    noise = spread * torch.randn(shape, generator=generator, dtype=dtype) * batch.response_mask
    entropies = torch.rand(shape, generator=generator, dtype=dtype) * batch.response_mask
    return (batch.old_log_probs + noise).requires_grad_(), entropies.requires_grad_()


def with_everything(name: str, aggregation: str = "token-mean"):
    length = 8 if aggregation == "constant" else None
    return LOSSES[name](kl_coef=0.1, entropy_coef=0.01, aggregation=aggregation, aggregation_length=length)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_number_with_detached_metrics(name):
    batch = train_batch()
    loss, metrics = with_everything(name)(*live(batch), batch)
    assert loss.shape == ()
    assert loss.requires_grad
    assert {"policy_loss", "kl", "entropy", "ratio", "approx_kl", "clip_fraction_high"} < set(metrics)
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_behind_the_mask_does_not_leak(name):
    batch = train_batch()
    hidden = ("behavior_log_probs", "old_log_probs", "advantages", "ref_log_probs")
    for value in (float("nan"), float("inf"), -1e4):
        dirty = replace(batch, **{f: getattr(batch, f).where(batch.response_mask, value) for f in hidden})
        gradients = []
        for each in (batch, dirty):
            inputs = [x.detach().where(batch.response_mask, value).requires_grad_() for x in live(batch)]
            loss, metrics = with_everything(name)(*inputs, each)
            loss.backward()
            gradients.append((loss.detach(), *(x.grad for x in inputs), *metrics.values()))
        for clean, same in zip(*gradients, strict=True):
            assert clean.isfinite().all()
            torch.testing.assert_close(same, clean)
        assert (gradients[0][1][~batch.response_mask] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_rows_does_not_matter(name):
    batch = train_batch()
    log_probs, entropies = live(batch)
    rows = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    moved = replace(batch.select(rows), num_tokens=None, num_rows=None)
    loss, metrics = with_everything(name)(log_probs, entropies, batch)
    same, same_metrics = with_everything(name)(log_probs[rows], entropies[rows], moved)
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(same_metrics, metrics)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_shares_of_micro_batches_add_up(name, aggregation):
    batch = train_batch(num_rows=14)
    compute = with_everything(name, aggregation)
    results = []
    for max_tokens in (10**6, 50, 16):
        log_probs, entropies = live(batch, spread=1.5, seed=5)
        micros = batch.micro_batches(max_tokens)
        total: dict[str, torch.Tensor] = {}
        for rows, micro in micros:
            width = micro.token_ids.shape[1]
            loss, metrics = compute(log_probs[rows, :width], entropies[rows, :width], micro)
            loss.backward()
            for key, value in {"loss": loss.detach(), **metrics}.items():
                total[key] = total.get(key, 0.0) + value
        results.append((len(micros), log_probs.grad, entropies.grad, total))
    assert [count for count, *_ in results] == [1, 2, 7]
    assert name != "ProceduralLoss" or results[0][-1]["filtered_rows"] > 0
    for _, log_prob_grad, entropy_grad, total in results[1:]:
        torch.testing.assert_close(log_prob_grad, results[0][1])
        torch.testing.assert_close(entropy_grad, results[0][2])
        torch.testing.assert_close(total, results[0][3])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_totals_of_the_step_change_nothing_when_no_row_is_left_out(aggregation):
    batch, compute = train_batch(), with_everything("ClippedLoss", aggregation)
    ((_, whole),) = batch.micro_batches(10**6)
    order = batch.lengths.argsort(descending=True, stable=True)
    log_probs, entropies = live(batch)
    expected, _ = compute(log_probs, entropies, batch)
    torch.testing.assert_close(compute(log_probs[order], entropies[order], whole)[0], expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_are_those_of_the_loss(name, aggregation):
    batch = train_batch(num_rows=3)
    compute = replace(with_everything(name, aggregation), **DIFFERENTIABLE[name])
    if name == "SequenceClippedLoss":
        # Tokens keep their own gradient; their sum is the gradient of the row's value if their advantages are equal.
        batch = replace(batch, advantages=batch.advantages[:, 1:2].expand_as(batch.advantages))
    log_probs, entropies = live(batch)
    assert torch.autograd.gradcheck(lambda p, h: compute(p, h, batch)[0], (log_probs, entropies))


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


def test_without_its_own_terms_the_procedural_loss_is_the_clipped_loss():
    batch = train_batch()
    inputs = live(batch)
    plain = ProceduralLoss(future_weight=0.0, sequence_filter=False)(*inputs, batch)[0]
    torch.testing.assert_close(plain, ClippedLoss(clip_high=0.28, dual_clip=3.0)(*inputs, batch)[0])


def runaway_batch() -> tuple[TrainBatch, torch.Tensor]:
    """Row 0 has two tokens with ratio 4 and a negative advantage, row 1 one of them."""
    zeros = torch.zeros(2, 4)
    batch = TrainBatch(
        token_ids=zeros.long(),
        lengths=torch.tensor([4, 4]),
        response_mask=torch.tensor([[False, True, True, True]] * 2),
        behavior_log_probs=zeros,
        old_log_probs=zeros,
        advantages=torch.tensor([[0.0, -1.0, -1.0, 1.0], [0.0, -1.0, 1.0, 1.0]]),
    )
    log_four = torch.tensor(4.0).log().item()
    log_probs = torch.tensor([[0.0, log_four, log_four, 0.0], [0.0, log_four, 0.0, 0.0]], requires_grad=True)
    return batch, log_probs


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


def test_the_bonus_is_subtracted_with_the_mean_entropy():
    batch = train_batch()
    log_probs, entropies = live(batch)
    plain, metrics = ClippedLoss()(log_probs, entropies, batch)
    loss, _ = ClippedLoss(entropy_coef=0.3)(log_probs, entropies, batch)
    mean = entropies[batch.response_mask].mean()
    torch.testing.assert_close(loss, plain - 0.3 * mean)
    torch.testing.assert_close(metrics["entropy"], mean.detach())


def test_a_batch_without_trained_tokens_costs_nothing():
    batch, log_probs = runaway_batch()
    batch = replace(batch, response_mask=torch.zeros(2, 4, dtype=torch.bool))
    loss, metrics = ProceduralLoss()(log_probs, torch.zeros(2, 4), batch)
    loss.backward()
    assert loss == 0
    assert not log_probs.grad.any()
    assert all(value == 0 for value in metrics.values())


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
        ({"dual_clip": 1.1}, "dual_clip must be above 1 \\+ clip_high = 1.28, got 1.1"),
        ({"behavior_cap": 0.5}, "behavior_cap must be at least 1, got 0.5"),
        ({"behavior_correction": "cut"}, "behavior_correction must be truncate, mask or off, got 'cut'"),
        ({"kl": "k4"}, "kl must be k1, abs, k2 or k3, got 'k4'"),
        ({"kl_coef": -1.0}, "kl_coef must not be negative, got -1.0"),
        ({"aggregation": "mean"}, "aggregation must be token-mean, .*, got 'mean'"),
        ({"aggregation": "constant"}, "aggregation_length must be given .* got None with aggregation=constant"),
        ({"aggregation_length": 5}, "aggregation_length must be given .* got 5 with aggregation=token-mean"),
        ({"aggregation": "constant", "aggregation_length": 0}, "aggregation_length must be positive, got 0"),
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


@pytest.mark.parametrize("name", LOSSES)
def test_a_ratio_to_sampling_compares_with_the_policy_that_sampled(name):
    batch = train_batch()
    log_probs, entropies = live(batch)
    as_if_fresh = replace(batch, old_log_probs=batch.behavior_log_probs)
    loss, _ = LOSSES[name](ratio_to="sampling", behavior_cap=1.5)(log_probs, entropies, batch)
    expected, _ = LOSSES[name](behavior_correction="off")(log_probs, entropies, as_if_fresh)
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, LOSSES[name](behavior_correction="off")(log_probs, entropies, batch)[0])


@pytest.mark.parametrize("name", LOSSES)
def test_old_log_probs_are_needed_where_the_ratio_compares_with_them(name):
    batch = train_batch()
    log_probs, entropies = live(batch)
    for ratio_to in ("update", "sampling"):
        compute = LOSSES[name](ratio_to=ratio_to)
        loss, _ = compute(log_probs, entropies, batch)
        other, _ = compute(log_probs, entropies, replace(batch, old_log_probs=batch.old_log_probs - 0.3))
        assert compute.needs_old_log_probs == (loss != other)
