"""The authors' released functions, run once on random inputs: every value must come out of ours.

`appo_release.json` was made from commit b04e7e9 of the release. The environment variable `APPO_GOLDEN` names another
file of the same form, all of whose cases are then checked instead: values to 1e-5, lists of branches exactly and in
order. A file without cases, or with anything in a case that no test here reads, is an error. Files count positions
within the response, the project over the whole sequence: a prompt is put before every row.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from appo.advantages import ProceduralAdvantage
from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.functional import (
    aggregation_weights,
    clip_events,
    discounted_suffix_sum,
    dual_clip_surrogate,
    future_likelihood_gain,
    future_likelihood_weight,
    group_standardize,
    kl_estimate,
    masked_standardize,
    masked_std,
    prefix_credit,
    rows_within_dual_clip,
    select_branch_points,
)
from appo.losses import ProceduralLoss
from appo.scorers import BatchContext, BranchingScore
from tests.advantages.contexts import NO_CONTEXT
from tests.parity.golden import load_cases
from tests.parity.release import reward_scale, standardize_by_row

GOLDEN = Path(os.environ.get("APPO_GOLDEN", Path(__file__).with_name("appo_release.json")))
CASES = load_cases(GOLDEN)
LOSSES = [case["loss"] for case in CASES]
ATOL = 1e-5  # what the values are promised to; float32 sums in another order differ by about 1e-6
AGGREGATIONS = {
    "token-mean": "token-mean",
    "seq-mean-token-sum": "sequence-sum",
    "seq-mean-token-mean": "sequence-mean",
    "seq-mean-token-sum-norm": "constant",
}

each_case = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
each_loss = pytest.mark.parametrize("golden", LOSSES, ids=range(len(LOSSES)))


def assert_equal_to_release(ours: Tensor | float, theirs: list | float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(
        torch.as_tensor(ours).detach().double(), torch.tensor(theirs, dtype=torch.float64), atol=ATOL, rtol=rtol
    )


def prompt_length(case: dict) -> int:
    return len(case["inputs"]["prompt_ids"][0])


def whole_sequence(case: dict, values: list, num_branches: int = 0) -> Tensor:
    """``[R, T]`` over response positions to ``[R + num_branches, P + T]``, 0 on prompts and branches."""
    return torch.nn.functional.pad(torch.tensor(values), (prompt_length(case), 0, 0, num_branches))


def initial_batch(case: dict) -> TrajectoryBatch:
    inputs, num_rows = case["inputs"], len(case["prompt_of_row"])
    return make_batch(
        token_ids=torch.cat([torch.tensor(inputs["prompt_ids"]), torch.tensor(inputs["response_ids"])], dim=1),
        lengths=prompt_length(case) + torch.tensor(inputs["attention_mask"]).sum(-1),
        response_mask=whole_sequence(case, inputs["loss_mask"]).bool(),
        behavior_log_probs=whole_sequence(case, inputs["behaviour_log_probs"]),
        old_log_probs=whole_sequence(case, inputs["current_log_probs"]),
        entropies=whole_sequence(case, inputs["entropies"]),
        evaluated_by=torch.ones(num_rows, dtype=torch.int64),  # by another version than the one that sampled
        rewards=torch.full((num_rows,), float("nan")),
        group=torch.tensor(case["prompt_of_row"]),
        parent=torch.full((num_rows,), NO_PARENT),
        branch_position=torch.full((num_rows,), NO_PARENT),
        branch_score=torch.zeros(num_rows),
    )


def rewarded_batch(case: dict) -> TrajectoryBatch:
    golden, initial = case["advantage"], initial_batch(case)
    branches, shift = case["branches"], prompt_length(case)
    mask = whole_sequence(case, golden["response_mask"]).bool()
    zeros = torch.zeros(mask.shape)
    none = [NO_PARENT] * len(case["prompt_of_row"])
    return make_batch(
        token_ids=torch.nn.functional.pad(initial.token_ids, (0, 0, 0, len(branches))),
        lengths=shift + torch.tensor(golden["lengths"]),
        response_mask=mask,
        behavior_log_probs=zeros,
        old_log_probs=zeros,
        entropies=zeros,
        rewards=torch.tensor(golden["rewards"]),
        group=torch.tensor(golden["prompt_of_row"]),
        parent=torch.tensor(none + [branch["row"] for branch in branches]),
        branch_position=torch.tensor(none + [shift + branch["position"] for branch in branches]),
        branch_score=torch.tensor([0.0] * len(none) + [branch["score"] for branch in branches]),
    )


def assert_branches_equal(case: dict, scores: Tensor, preferred: Tensor) -> None:
    """Chooses branch points by `scores` over the whole sequence and compares the lists."""
    batch, params, shift = initial_batch(case), case["params"], prompt_length(case)
    is_blank = torch.isin(batch.token_ids, torch.tensor(params["blank_token_ids"]))
    chosen = select_branch_points(
        scores,
        preferred,
        batch.response_mask & ~is_blank,
        batch.group,
        budget=params["max_branches_per_prompt"],
        fallback=True,
        repeat=True,
    )
    ours = list(zip(chosen.rows.tolist(), (chosen.positions - shift).tolist(), strict=True))
    assert ours == [(branch["row"], branch["position"]) for branch in case["branches"]]
    width = batch.token_ids.shape[1]
    assert (width - chosen.positions - 1).tolist() == [branch["remaining"] for branch in case["branches"]]
    assert_equal_to_release(chosen.scores, [branch["score"] for branch in case["branches"]])


def score_of_release(case: dict) -> BranchingScore:
    params = case["params"]
    half_life = None if params["gamma"] == 1.0 else -1.0 / math.log2(params["gamma"])
    return BranchingScore(half_life=half_life, clip=max(params["clip_eps"], 0.0))


@each_case
def test_future_values(case):
    inputs, params = case["inputs"], case["params"]
    log_ratio = torch.tensor(inputs["current_log_probs"]) - torch.tensor(inputs["behaviour_log_probs"])
    mask = torch.tensor(inputs["loss_mask"]).bool()
    gain = future_likelihood_gain(log_ratio, mask, params["gamma"], params["clip_eps"])
    assert_equal_to_release(gain, case["future_values"])


@each_case
def test_future_values_of_the_scorer(case):
    scores = score_of_release(case)(initial_batch(case), BatchContext(torch.Generator()))
    gain = scores.factors["likelihood_gain"][:, prompt_length(case) :]
    assert_equal_to_release(gain, case["future_values"])


@each_case
def test_branches_of_the_functions(case):
    batch = initial_batch(case)
    mask, params = batch.response_mask, case["params"]
    gain = future_likelihood_gain(
        batch.old_log_probs - batch.behavior_log_probs, mask, params["gamma"], params["clip_eps"]
    )
    z_entropy, z_gain = standardize_by_row(batch.entropies, mask), standardize_by_row(gain, mask)
    scores = z_entropy * z_gain
    assert_branches_equal(case, scores, (z_entropy > 0) & (z_gain > 0) & (scores > 0))


@each_case
def test_branches_of_the_scorer(case, monkeypatch):
    monkeypatch.setattr("appo.scorers.branching.masked_standardize", standardize_by_row)
    scores = score_of_release(case)(initial_batch(case), BatchContext(torch.Generator()))
    assert_branches_equal(case, scores.values, scores.preferred)


@each_case
def test_the_released_rounding_matters_only_where_a_gain_is_constant(case):
    batch = initial_batch(case)
    gain, mask = whole_sequence(case, case["future_values"]), batch.response_mask
    ours, theirs = masked_standardize(gain, mask), standardize_by_row(gain, mask)
    # A mean that is off by a few units in the last place moves z-scores by that over the standard deviation.
    spread = masked_std(gain, mask)
    allowed = ATOL + 4 * torch.finfo(gain.dtype).eps / (spread + 1e-6)
    assert ((ours - theirs).abs() <= allowed.unsqueeze(-1)).all()
    assert (ours[spread == 0] == 0).all()


@each_case
def test_initial_rows_come_before_branches(case):
    assert case["advantage"]["kind"] == ["init"] * len(case["prompt_of_row"]) + ["branch"] * len(case["branches"])


def scaled_rewards(case: dict) -> Tensor:
    """``[B, T]``: rewards stand on the last token."""
    batch = rewarded_batch(case)
    width, discount = batch.token_ids.shape[1], case["advantage"]["discount"]
    scale = reward_scale(batch.parent, batch.branch_position, batch.branch_score, width, discount)
    return batch.rewards.unsqueeze(-1) * torch.nn.functional.one_hot(batch.lengths - 1, width) * scale


@each_case
def test_scaled_rewards(case):
    scaled = scaled_rewards(case)[:, prompt_length(case) :]
    assert_equal_to_release(scaled, case["advantage"]["scaled_token_rewards"])


@each_case
def test_advantages_of_the_functions(case):
    batch, golden = rewarded_batch(case), case["advantage"]
    rewards = torch.tensor(golden["scaled_token_rewards"]).sum(-1)
    by_row = group_standardize(rewards, 2 * batch.group + batch.is_branch)
    credit = prefix_credit(by_row, batch.parent, batch.branch_position, batch.token_ids.shape[1])
    advantages = (by_row.unsqueeze(-1) + credit) * batch.response_mask * ~batch.is_branch.unsqueeze(-1)
    assert_equal_to_release(advantages[:, prompt_length(case) :], golden["advantages"])


@each_case
def test_advantages_of_the_estimator(case):
    batch = replace(rewarded_batch(case), rewards=scaled_rewards(case).sum(-1))
    advantages = ProceduralAdvantage()(batch, NO_CONTEXT)[:, prompt_length(case) :]
    assert_equal_to_release(advantages, case["advantage"]["advantages"])


def rows_of_release(mode: str, mask: Tensor) -> int | None:
    """The number of rows that the release divides by; None if it counts those with tokens.

    It divides the sum over all rows by the response length where we take the mean over rows.
    """
    return {"seq-mean-token-sum": len(mask), "seq-mean-token-sum-norm": 1}.get(mode)


def weights_of_release(mask: Tensor, mode: str) -> Tensor:
    return aggregation_weights(mask, AGGREGATIONS[mode], length=mask.shape[1], num_rows=rows_of_release(mode, mask))


@each_loss
def test_loss_of_the_functions(golden):
    params, mask = golden["params"], torch.tensor(golden["loss_mask"]).bool()
    log_probs = torch.tensor(golden["log_probs"], requires_grad=True)
    log_ratio = log_probs - torch.tensor(golden["old_log_probs"])
    raw = torch.tensor(golden["advantages"])
    advantages = raw * (1 + params["future_kl_weight"] * future_weight(golden))
    clips = params["clip_ratio_low"], params["clip_ratio_high"], params["clip_ratio_c"]
    events = clip_events(log_ratio, advantages, *clips)
    kept = mask & rows_within_dual_clip(events.dual & mask).unsqueeze(-1)
    losses = dual_clip_surrogate(log_ratio, advantages, *clips)
    loss = (losses * weights_of_release(kept, params["loss_agg_mode"])).sum()
    loss.backward()
    assert_equal_to_release(loss, golden["loss"])
    assert_equal_to_release(log_probs.grad, golden["grad"])


@each_loss
def test_loss_of_the_component(golden):
    params, mask = golden["params"], torch.tensor(golden["loss_mask"]).bool()
    aggregation = AGGREGATIONS[params["loss_agg_mode"]]
    loss_of_release = ProceduralLoss(
        clip_low=params["clip_ratio_low"],
        clip_high=params["clip_ratio_high"],
        dual_clip=params["clip_ratio_c"],
        future_weight=params["future_kl_weight"],
        future_half_life=params["decay_rate"],
        future_clip=params["future_kl_clip_ratio"],
        high_only=params["future_kl_clip_high_only"],
        safety_threshold=params["safety_thresh"],
        aggregation=aggregation,
        aggregation_length=mask.shape[1] if aggregation == "constant" else None,
        behavior_correction="off",
    )
    log_probs = torch.tensor(golden["log_probs"], requires_grad=True)
    zeros = torch.zeros(mask.shape)
    batch = make_batch(
        token_ids=zeros.long(),
        lengths=torch.full((len(mask),), mask.shape[1]),
        response_mask=mask,
        behavior_log_probs=zeros,
        old_log_probs=torch.tensor(golden["old_log_probs"]),
        advantages=torch.tensor(golden["advantages"]),
        num_rows=rows_of_release(params["loss_agg_mode"], mask),
    )
    loss, metrics = loss_of_release(log_probs, zeros, batch)
    loss.backward()
    assert_equal_to_release(loss, golden["loss"])
    assert_equal_to_release(log_probs.grad, golden["grad"])
    assert_equal_to_release(metrics["clip_fraction_high"] + metrics["clip_fraction_low"], golden["clip_fraction"])
    assert_equal_to_release(metrics["dual_clip_fraction"], golden["lower_clip_fraction"])
    assert_equal_to_release(metrics["approx_kl"], golden["approx_kl"])
    assert_equal_to_release(metrics["future_weight"], golden["metrics"]["actor/fipo_iw_mean"])


def future_weight(golden: dict, high_only: bool | None = None) -> Tensor:
    params = golden["params"]
    return future_likelihood_weight(
        torch.tensor(golden["log_probs"]) - torch.tensor(golden["old_log_probs"]),
        torch.tensor(golden["advantages"]),
        torch.tensor(golden["loss_mask"]).bool(),
        half_life=params["decay_rate"],
        clip=params["future_kl_clip_ratio"],
        high_only=params["future_kl_clip_high_only"] if high_only is None else high_only,
        max_ratio=params["clip_ratio_c"],
        safety_threshold=params["safety_thresh"],
    )


@each_loss
def test_influence_weights(golden):
    mask, metrics = torch.tensor(golden["loss_mask"]).bool(), golden["metrics"]
    params = golden["params"]
    weight = future_weight(golden)[mask]
    assert_equal_to_release(weight.mean(), metrics["actor/fipo_iw_mean"])
    assert_equal_to_release(weight.min(), metrics["actor/fipo_iw_min"])
    assert_equal_to_release(weight.max(), metrics["actor/fipo_iw_max"])
    assert metrics["actor/fipo_iw_weight"] == params["future_kl_weight"]
    # Without the lower bound of 1 a weight shows on which side of the range its raw value lies, bounds included.
    both_sides = future_weight(golden, high_only=False)[mask]
    lowest = 1 if params["future_kl_clip_high_only"] else 1 - params["future_kl_clip_ratio"]
    above = (both_sides >= 1 + params["future_kl_clip_ratio"]).float().mean()
    below = (both_sides <= lowest).float().mean()
    assert_equal_to_release(above, metrics["actor/fipo_iw_clip_upper"])
    assert_equal_to_release(below, metrics["actor/fipo_iw_clip_lower"])
    assert_equal_to_release(above + below, metrics["actor/fipo_iw_clip_total"])


@each_loss
def test_influence_weights_before_clipping(golden):
    mask, metrics, params = torch.tensor(golden["loss_mask"]).bool(), golden["metrics"], golden["params"]
    log_ratio = torch.tensor(golden["log_probs"]).double() - torch.tensor(golden["old_log_probs"]).double()
    takes_part = mask & (log_ratio <= math.log(params["clip_ratio_c"]))
    future = discounted_suffix_sum(log_ratio.where(takes_part, 0.0), 2.0 ** (-1.0 / params["decay_rate"]))
    raw = future[mask].exp()
    for name, value in (("mean", raw.mean()), ("min", raw.min()), ("max", raw.max())):
        # Nothing bounds them, and the release computed them in float32.
        assert_equal_to_release(value, metrics[f"actor/fipo_iw_raw_{name}"], rtol=1e-6)


@each_loss
@pytest.mark.parametrize(("theirs", "ours"), [("kl", "k1"), ("abs", "abs"), ("mse", "k2"), ("low_var_kl", "k3")])
def test_divergences(golden, theirs, ours):
    log_probs, reference = torch.tensor(golden["log_probs"]), torch.tensor(golden["reference_log_probs"])
    assert_equal_to_release(kl_estimate(log_probs, reference, ours), golden["kl"][theirs])


@each_loss
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_aggregates(golden, mode):
    losses, mask = torch.tensor(golden["loss_matrix"]), torch.tensor(golden["loss_mask"]).bool()
    assert_equal_to_release((losses * weights_of_release(mask, mode)).sum(), golden["aggregates"][mode])
