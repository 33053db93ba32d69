"""What computes on a GPU computes the same on a second device, and never mixes tensors of both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from appo.advantages import ADVANTAGES
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import RewardResult
from appo.distributed.fsdp import clip_gradients
from appo.engines import HFEngine
from appo.losses import LOSSES, ProceduralLoss
from appo.monitoring.rollout_metrics import rollout_metrics
from appo.policy import lm_head
from appo.policy.evaluation import evaluate_batch
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import named_weights
from appo.rollouts.data import IterationData
from appo.scorers import SCORERS, Scores
from appo.training.gradient import accumulate_gradient
from tests.engines.tiny_policy import make_model, make_tokenizer, random_requests, run
from tests.losses.train_batches import live, train_batch
from tests.scorers.contexts import context_of, records
from tests.scorers.scored_batches import built
from tests.second_device import SecondTensor, on_second_device

CPU = torch.device("cpu")
Results = Mapping[str, Tensor]


def compare(names: Iterable[str], compute: Callable[[str, torch.device], Results], device: torch.device) -> None:
    """Holds what components compute on the second device against what they compute on the CPU."""
    failed = {}
    for name in names:
        try:
            ours, right = compute(name, device), compute(name, CPU)
            elsewhere = [key for key, value in ours.items() if value.device.type != device.type]
            assert not elsewhere, f"{elsewhere} came back on another device"
            torch.testing.assert_close({key: value.cpu() for key, value in ours.items()}, dict(right))
        except Exception as error:  # noqa: BLE001 - all of them are to be named at once
            failed[name] = error
    assert not failed, failed


def minimize(device: torch.device) -> None:
    batch = train_batch()

    def compute(name: str, device: torch.device) -> Results:
        log_probs, entropies = (leaf.detach().to(device).requires_grad_() for leaf in live(batch))
        loss, metrics = LOSSES[name](kl_coef=0.1, entropy_coef=0.01)(log_probs, entropies, batch.to(device))
        loss.backward()
        return {"loss": loss.detach(), "log_probs": log_probs.grad, "entropies": entropies.grad, **metrics}

    compare(LOSSES, compute, device)


def score(device: torch.device, batch: TrajectoryBatch) -> None:
    roots = batch.select((~batch.is_branch).nonzero()[:, 0])

    def compute(name: str, device: torch.device) -> Results:
        scores = built(name)(roots.to(device), context_of(roots))
        preferred = {} if scores.preferred is None else {"preferred": scores.preferred}
        return {"values": scores.values, **preferred, **scores.factors}

    compare(SCORERS, compute, device)


def credit(device: torch.device, batch: TrajectoryBatch) -> None:
    def compute(name: str, device: torch.device) -> Results:
        return {"advantages": ADVANTAGES[name]()(batch.to(device), context_of(batch))}

    compare(ADVANTAGES, compute, device)


def describe(device: torch.device, batch: TrajectoryBatch) -> None:
    scores = Scores(batch.entropies, factors={"entropy": batch.entropies})
    results = [RewardResult(float(reward), {}) for reward in batch.rewards]
    data = IterationData(records(batch), results, batch, scores, [], [], num_wanted=2)
    assert rollout_metrics([data.to(device)]) == rollout_metrics([data])


def update(device: torch.device) -> None:
    """Log-probs of rollouts, the gradient of two micro-batches, its norm, and a step of the foreach AdamW."""
    batch = train_batch()

    def compute(name: str, device: torch.device) -> Results:
        # A tensor of a class of its own is taken for a quantized one; here it stands for a device.
        lm_head.Tensor = torch.Tensor if device == CPU else SecondTensor
        model = make_model(name, 40).double().to(device).train()
        policy = PolicyLogProbs(model)
        log_probs, entropies = evaluate_batch(policy, batch, 20, device, nullcontext)
        assert log_probs.device == entropies.device == CPU
        assert log_probs[batch.response_mask].all()
        loss, strategy = ProceduralLoss(kl_coef=0.1, entropy_coef=0.01), SingleDeviceStrategy("cpu")
        metrics = accumulate_gradient(policy, loss, batch.to(device), 40, strategy, lambda share: share.backward())
        norm = clip_gradients(model.parameters(), 1.0)
        torch.optim.AdamW(model.parameters(), foreach=True, lr=1e-3).step()
        assert policy._head is not None
        assert policy._sequences.packs
        values = {"log_probs": log_probs, "entropies": entropies, **metrics}
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return {"norm": norm, **{name: value.to(device) for name, value in values.items()}, **parameters}

    compare(["llama", "qwen2", "qwen3"], compute, device)


def sync(device: torch.device) -> None:
    """Weights come from either device to an engine on either, which then samples the same."""
    tokenizer = make_tokenizer()
    requests = random_requests(len(tokenizer), 4)
    with tempfile.TemporaryDirectory() as folder:
        make_model("llama", len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        sampled = []
        for to_engine in (CPU, device):
            engine = HFEngine(device=str(to_engine))
            engine.start(folder)
            for version, of_trainer in enumerate((CPU, device), start=1):
                model = make_model("llama", len(tokenizer), seed=5).to(of_trainer)
                engine.update_weights(named_weights(model), version)
                sampled.append({number: each.token_ids for number, each in run(engine, requests).items()})
            engine.stop()
    assert sampled[1:] == sampled[:1] * 3


@pytest.mark.parametrize("work", [minimize, update, sync])
def test_training_computes_the_same_on_a_second_device(work):
    on_second_device(work)


@pytest.mark.parametrize("work", [score, credit, describe])
def test_components_compute_the_same_on_a_second_device(work, batch):
    on_second_device(work, batch)
