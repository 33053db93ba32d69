"""Steps about engines: what they sample, take, give back and leave behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from operator import eq
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

from appo.commands.doctor.policies import on_device, policy_folder
from appo.commands.doctor.result import Figures, Machine, SkipStepError, StepError
from appo.core.batch import TrajectoryBatch
from appo.engines import Engine, HFEngine, Request, VLLMEngine
from appo.engines.vllm.core import runs_on_cpu
from appo.policy.evaluation import evaluate_batch
from appo.policy.loading import load_tokenizer
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import named_weights
from appo.policy.text import encode
from appo.rollouts import WeightProbe, default_tolerance
from appo.rollouts.data import Evaluate

_UPDATES = 20
_STEP = 0.02
"""Change of a weight in an update, as a share of the standard deviation of its tensor."""

_TEXT = "Who lives in Oslo, and what is 37 + 48?"


def hf_engine_32(machine: Machine, figures: Figures) -> None:
    """`HFEngine` beside a policy that is trained in float32."""
    _check(machine, figures, HFEngine(dtype="float32", device=str(machine.device)), torch.float32)


def hf_engine_bf16(machine: Machine, figures: Figures) -> None:
    """`HFEngine` in bfloat16 beside a policy that is trained in mixed precision."""
    _check(machine, figures, HFEngine(dtype="bfloat16", device=str(machine.device)), torch.bfloat16)


def vllm_engine_32(machine: Machine, figures: Figures) -> None:
    """`VLLMEngine`, likewise."""
    _check_vllm(machine, figures, torch.float32)


def vllm_engine_bf16(machine: Machine, figures: Figures) -> None:
    """`VLLMEngine`, likewise."""
    machine.needs_gpu("vLLM for CPUs is checked in float32")
    _check_vllm(machine, figures, torch.bfloat16)


def _check_vllm(machine: Machine, figures: Figures, dtype: torch.dtype) -> None:
    _check(machine, figures, vllm_engine(machine, dtype), dtype)


def vllm_engine(machine: Machine, dtype: torch.dtype) -> VLLMEngine:
    """An engine of vLLM on the machine's device, not started.

    Raises:
        SkipStepError: if vLLM is not installed, or is one for other devices.
    """
    try:
        on_cpu = runs_on_cpu()
    except ImportError as error:
        raise SkipStepError(str(error)) from error
    if on_cpu == machine.is_gpu:
        raise SkipStepError(f"the installed vLLM is not one for {machine.device.type}")
    return VLLMEngine(dtype=str(dtype).removeprefix("torch."), gpu_memory_utilization=0.3, max_length=512)


def _check(machine: Machine, figures: Figures, engine: Engine, dtype: torch.dtype) -> None:
    """Everything that a training asks of an engine, with a policy that is evaluated in `dtype`."""
    folder = str(policy_folder(machine))
    tokens = tuple(encode(load_tokenizer(folder), _TEXT))
    before, memory, tensors, threads = _state(machine), _memory(machine), _tensor_memory(machine), _threads()
    started = perf_counter()
    engine.start(folder)
    figures["start s"] = perf_counter() - started
    try:
        _check_sampling(machine, figures, engine, tokens)
        _check_updates(machine, figures, engine, tokens, dtype)
    finally:
        engine.stop()
    figures["device MiB not given back by stop"] = _memory(machine) - memory
    figures["MiB of them in tensors"] = _tensor_memory(machine) - tensors
    figures["threads left behind"] = ", ".join(sorted(_threads() - threads)) or "none"
    changed = {name: f"{before[name]} -> {value}" for name, value in _state(machine).items() if before[name] != value}
    figures |= {f"changed {name}": text for name, text in changed.items()}
    if changed:
        raise StepError(f"{type(engine).__name__} has changed {', '.join(changed)} of the process", "report it")


def _check_sampling(machine: Machine, figures: Figures, engine: Engine, tokens: tuple[int, ...]) -> None:
    """Speed, and the same tokens for the same seeds after a sleep."""
    number, length = (64, 128) if machine.is_gpu else (8, 32)
    requests = [Request(i, (*tokens, 5 + i), length, seed=i) for i in range(number)]
    _drawn(engine, requests[:2])  # warms up
    started = perf_counter()
    first = _drawn(engine, requests)
    figures["tokens/s"] = sum(map(len, first)) / (perf_counter() - started)
    awake = _memory(machine)
    engine.sleep()
    figures["device MiB given back by sleep"] = awake - _memory(machine)
    again = _drawn(engine, requests)
    # Batches of other shapes are rounded otherwise, and a token that nearly tied may fall differently.
    figures["equal sequences after sleep"] = f"{sum(map(eq, first, again))} of {number}"


def _drawn(engine: Engine, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    for request in requests:
        engine.submit(request)
    tokens: dict[int, tuple[int, ...]] = {}
    while engine.num_in_flight:
        tokens |= {completion.id: completion.token_ids for completion in engine.step()}
    return [tokens[request.id] for request in requests]


def _check_updates(
    machine: Machine, figures: Figures, engine: Engine, tokens: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Many updates, each of which must arrive: log-probs agree after it as the check in training wants, not before.

    Every other one comes to an engine that has dropped its weights.
    """
    model = on_device(machine).eval()
    probe = WeightProbe(engine, _evaluate(machine, model, dtype), tokens, 1.0)
    stale, synced, seconds = [], [probe(0)], []
    for version in range(1, _UPDATES + 1):
        _perturb(model, version)
        stale.append(probe(version, 1))
        if version % 2:
            engine.sleep(weights_follow=True)
        started = perf_counter()
        engine.update_weights(named_weights(model), version)
        seconds.append(perf_counter() - started)
        synced.append(probe(version))
    tolerance, worst = default_tolerance(engine, dtype), max(each.mean for each in synced)
    figures |= {
        "update s": fmean(seconds),
        "mismatch mean, least and most": _range([each.mean for each in synced]),
        "mismatch of a token, least and most": _range([each.largest for each in synced]),
        "mismatch mean before the update": _range([each.mean for each in stale]),
        "tolerance": tolerance,
    }
    if worst > tolerance:
        raise StepError(
            f"log-probs of the engine and of the trainer differ by {worst:.2g} in the mean, more than {tolerance:g}",
            "another version of the engine, or rollout.sampling.max_mismatch",
        )
    if worst > 0.5 * min(each.mean for each in stale):
        raise StepError("weights that did not arrive would not be found out", "report it")


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


@torch.no_grad()
def _perturb(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator(model.device).manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        parameter.add_(_STEP * (parameter.std() + 1e-3) * noise)


def _evaluate(machine: Machine, model: PreTrainedModel, dtype: torch.dtype) -> Evaluate:
    """Log-probs of the policy as training takes them."""
    log_probs = PolicyLogProbs(model)

    def evaluate(batch: TrajectoryBatch) -> TrajectoryBatch:
        precision = partial(torch.autocast, machine.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        values = evaluate_batch(log_probs, batch, 2**16, machine.device, precision)
        return batch.evaluated(torch.arange(len(batch)), *values, policy_version=0)

    return evaluate


def _memory(machine: Machine) -> float:
    """MiB of the device that are taken, by whichever process and allocator."""
    if not machine.is_gpu:
        return 0.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(machine.device)
    return (total - free) / 2**20


def _tensor_memory(machine: Machine) -> float:
    """MiB in tensors; the rest of what a first use leaves on a device is kernels, and workspaces of libraries."""
    if not machine.is_gpu:
        return 0.0
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated(machine.device) / 2**20


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def _state(machine: Machine) -> dict[str, Any]:
    """What of the process an engine must leave as it was."""
    state: dict[str, Any] = {
        "number of threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "visible devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "process group": torch.distributed.is_initialized(),
    }
    if machine.is_gpu:
        state |= {
            "current device": torch.cuda.current_device(),
            "current stream": torch.cuda.current_stream() == torch.cuda.default_stream(),
            "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        }
    return state
