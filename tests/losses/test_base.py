from dataclasses import replace

import pytest
import torch

from appo.losses import LOSSES
from tests.losses.train_batches import live, train_batch

AGGREGATIONS = ["token-mean", "sequence-mean", "sequence-sum", "constant"]


DIFFERENTIABLE = {
    # What a loss holds constant by design is switched off, or left out of reach, where gradients are checked.
    "ProceduralLoss": {"future_weight": 0.0},
    "ClippedLoss": {"dual_clip": 3.0},
    "SequenceClippedLoss": {"clip_low": 0.2, "clip_high": 0.2, "behavior_correction": "off"},
    "ClippedImportanceLoss": {"clip_low": 0.0, "clip_high": 0.0},
    "ClipBalancedLoss": {"clip_high": 100.0},
}


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
        for micro in micros:
            rows, width = micro.rewards, micro.token_ids.shape[1]
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
    (whole,) = batch.micro_batches(10**6)
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
