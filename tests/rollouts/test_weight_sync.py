"""What the check of log-probs after an update of the weights lets pass, by the mean over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from appo.distributed import comm
from appo.engines import HFEngine, LostUpdateError
from appo.policy.evaluation import evaluate_batch
from appo.policy.log_probs import PolicyLogProbs
from appo.rollouts import EngineMismatchError, WeightProbe, WeightSync, default_tolerance
from tests.distributed.processes import as_processes
from tests.engines.dropping_engine import DroppingEngine

TOLERANCE = 0.1


EXACT, ONE_TOKEN, ALL_TOKENS = (0, 0.0), (1, -2.0), (64, -0.3)
"""At how many tokens a trainer is off, and by how many nats."""


def started(policy) -> HFEngine:
    engine = HFEngine(device="cpu")
    engine.start(str(policy))
    return engine


def weight_sync(policy, errors: Iterator[tuple[int, float]], engine: HFEngine | None = None) -> WeightSync:
    """A check of the weights whose trainer is off as `errors` say, at one attempt after the other."""
    model, engine = AutoModelForCausalLM.from_pretrained(policy), engine or started(policy)
    log_probs = PolicyLogProbs(model)

    def evaluate(batch):
        values, entropies = evaluate_batch(log_probs, batch, 2**16, torch.device("cpu"), torch.no_grad)
        off = torch.zeros(int(batch.response_mask.sum()))
        num_tokens, nats = next(errors)
        off[:num_tokens] = nats
        values[batch.response_mask] += off
        return batch.evaluated(torch.arange(len(batch)), values, entropies, policy_version=0)

    return WeightSync(engine, model.named_parameters, WeightProbe(engine, evaluate, (5, 6, 7), 1.0), TOLERANCE)


@pytest.fixture
def sync(policy_folder):
    return lambda *errors: weight_sync(policy_folder, iter(errors))


def test_equal_weights_agree(sync):
    checked = sync(EXACT)
    checked(0)
    assert 0.0 < checked.worst.mean <= checked.worst.largest < 1e-4


def test_an_engine_that_has_dropped_its_weights_gets_the_same_version_again(policy_folder):
    engine = DroppingEngine(device="cpu")
    engine.start(str(policy_folder))
    checked = weight_sync(policy_folder, iter([EXACT] * 3), engine)
    for version in (0, 0, 1):
        checked(version)
        assert engine.has_weights
        engine.sleep(weights_follow=True)
    assert checked.worst.largest < 1e-4


def test_a_single_token_that_is_far_off_is_warned_of_once_and_passes(sync, caplog):
    checked = sync(ONE_TOKEN, ONE_TOKEN)
    checked(0)
    checked(1)
    (warning,) = caplog.messages
    assert "differ by 2 nats at one token, by 0.0313 in the mean" in warning
    # 2 nats over 64 tokens.
    assert checked.worst.mean == pytest.approx(2 / 64, abs=1e-4)
    assert checked.worst.largest == pytest.approx(2.0, abs=1e-4)


def test_weights_that_did_not_arrive_end_the_run(sync):
    message = r"\(version 1\) within rollout.sampling.max_mismatch = 0.1 nats in the mean, got 0.3, at most 0.3"
    checked = sync(EXACT, ALL_TOKENS, ALL_TOKENS)
    checked(0)
    with pytest.raises(EngineMismatchError, match=message):
        checked(1)


class LosingEngine(HFEngine):
    """Loses the weights of its first update half way."""

    lost: ClassVar[list[str]] = []

    def update_weights(self, weights, version):
        if not self.lost:
            self.lost.append(next(iter(weights))[0])
            raise LostUpdateError("weights did not arrive (http://a: gone)")
        super().update_weights(weights, version)


def test_weights_that_were_lost_are_brought_again_from_their_beginning(policy_folder, caplog):
    engine = LosingEngine(device="cpu")
    engine.start(str(policy_folder))
    weight_sync(policy_folder, iter([EXACT]), engine)(1)
    assert len(engine.lost) == 1
    assert caplog.messages == ["weights did not arrive (http://a: gone): they are brought again"]


def test_what_passes_at_other_tokens_passes(sync):
    sync(ALL_TOKENS, EXACT)(0)


def check_together(rank, policy):
    comm.join(2, 60.0)
    errors = iter([ALL_TOKENS if rank == 0 else EXACT, EXACT])
    weight_sync(policy, errors)(0)
    assert not list(errors)
    comm.leave()


@pytest.mark.distributed
def test_processes_check_again_together(tmp_path, policy_folder):
    as_processes(check_together, tmp_path, policy_folder)


def test_a_probe_draws_its_tokens_by_version_and_attempt_alone(policy_folder):
    drawn = []

    def evaluate(batch):
        drawn.append(batch.token_ids.tolist())
        return replace(batch, old_log_probs=batch.behavior_log_probs)

    probe = WeightProbe(started(policy_folder), evaluate, (5, 6, 7), 1.0)
    for version, attempt in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        assert probe(version, attempt).largest == 0.0
    first, *others, again = drawn
    assert first == again
    assert first not in others
    assert others[0] != others[1]


def test_the_tolerance_is_that_of_the_coarser_precision(policy_folder):
    engine = started(policy_folder)
    assert default_tolerance(engine, torch.float32) == 1e-4
    assert default_tolerance(engine, torch.bfloat16) == 0.1
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert default_tolerance(engine, torch.float32) == 0.02
        assert default_tolerance(engine, torch.bfloat16) == 0.1
    finally:
        torch.set_float32_matmul_precision(before)
