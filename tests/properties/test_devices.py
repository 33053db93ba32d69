"""What computes on a GPU computes the same on a second device, and never mixes tensors of both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from appo import APPOModule, RolloutCallback, RolloutDataModule
from appo.advantages import ADVANTAGES
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import RewardResult, Trajectory
from appo.distributed.fsdp import clip_gradients
from appo.engines import HFEngine
from appo.environments.problems import WorldProblems
from appo.losses import LOSSES, ProceduralLoss
from appo.monitoring.rollout_metrics import rollout_metrics
from appo.policy import lm_head
from appo.policy.evaluation import evaluate_batch
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import named_weights
from appo.prompts import WorldQuestions
from appo.rewards import Reward
from appo.rollouts import Limits
from appo.rollouts.data import IterationData
from appo.scorers import SCORERS, Scores
from appo.training.callbacks import EvaluationCallback
from appo.training.gradient import accumulate_gradient
from appo.training.options import EvaluationOptions
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


@dataclass(frozen=True)
class Halves(Reward):
    """Right where the first sampled token has an even id, which is one of three answers."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        token = int(trajectory.token_ids[trajectory.prompt_length])
        return RewardResult(float(token % 2 == 0), {"accuracy": float(token % 2 == 0)}, answer=str(token % 3))


class OnDevice(CPUAccelerator):
    """Lets Lightning take the second device for what it trains on."""

    def setup_device(self, device: torch.device) -> None:
        pass


def evaluate(device: torch.device, policy: str) -> None:
    """A whole validation and test: the engine samples, trajectories are scored, their metrics are logged."""
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the device is known to this thread alone

    def compute(stage: str, device: torch.device) -> Results:
        lm_head.Tensor = torch.Tensor if device == CPU else SecondTensor
        rollout = RolloutCallback(
            engine=HFEngine(device=str(device)),
            reward=Halves(),
            limits=Limits(max_response_tokens=4),
            evaluation=EvaluationOptions(samples=4, temperature=1.0),
        )
        seen: set[str] = set()

        def look(trainer: L.Trainer, module: L.LightningModule) -> None:
            seen.add(next(module.policy.parameters()).device.type)

        looking = LambdaCallback(on_validation_end=look, on_test_end=look)
        trainer = L.Trainer(
            strategy=SingleDeviceStrategy(device, accelerator=OnDevice()),
            callbacks=[rollout, EvaluationCallback(), looking], logger=False,
            enable_progress_bar=False, enable_model_summary=False, fast_dev_run=1,
            inference_mode=False,  # its tensors cannot be wrapped
        )  # fmt: skip
        problems = WorldProblems(num_validation=2, num_test=2)
        data = RolloutDataModule(WorldQuestions(problems), max_prompt_tokens=64)
        getattr(trainer, stage)(APPOModule(policy), data, verbose=False)
        metrics = {name.partition("/")[2]: value for name, value in trainer.callback_metrics.items()}
        assert {"pass@1", "pass@4", "maj@4", "accuracy/story", "num_trajectories"} <= metrics.keys()
        assert 0 < metrics["pass@1"].item() < metrics["pass@4"].item() <= 1
        assert seen == {device.type}
        return {name: value.to(device) for name, value in metrics.items()}  # Lightning leaves them on the CPU

    compare(["validate", "test"], compute, device)


def test_an_evaluation_measures_the_same_on_a_second_device(policy_folder):
    on_second_device(evaluate, str(policy_folder))


@pytest.mark.parametrize("work", [minimize, update, sync])
def test_training_computes_the_same_on_a_second_device(work):
    on_second_device(work)


@pytest.mark.parametrize("work", [score, credit, describe])
def test_components_compute_the_same_on_a_second_device(work, batch):
    on_second_device(work, batch)
