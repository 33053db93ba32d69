"""``appo plan``: reads what decides about memory off a run's settings, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from transformers import AutoConfig, PreTrainedConfig

from appo.commands.plan.advice import advice, gpus_needed
from appo.commands.plan.plan import PHASES, USABLE_SHARE, MemoryPlan
from appo.commands.plan.settings import GIB, EngineSettings, Precision, RunSettings
from appo.commands.plan.shapes import SHAPES
from appo.distributed.fsdp import Sharding
from appo.engines import Engine, HFEngine, VLLMEngine, VLLMServerEngine
from appo.policy.loading import check_policy_folder
from appo.training.callbacks import RolloutCallback
from appo.training.checks import check_split_policy
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule
from appo.training.trainer_checks import check_precision

Strategy = Literal["single", "ddp", "fsdp"]


def policy_config(policy: str, shape: str | None) -> PreTrainedConfig:
    """Reads what describes a policy; no weights are needed.

    Args:
        policy: Hugging Face model folder or name.
        shape: key of `SHAPES` that stands for it. None: its ``config.json``.

    Raises:
        FileNotFoundError: if the folder has none.
        ValueError: if nothing is known by the name of `shape`.
    """
    if shape is None:
        check_policy_folder(policy)
        config: PreTrainedConfig = AutoConfig.from_pretrained(policy)
        return config
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    return AutoConfig.for_model(**SHAPES[shape], dtype="bfloat16")


def settings_of_run(
    module: APPOModule,
    data: RolloutDataModule,
    rollout: RolloutCallback,
    trainer: Namespace,
    config: PreTrainedConfig,
    gpus: int | None,
    gpu_memory_gib: float,
) -> RunSettings:
    """Picks what decides about memory from a run's settings.

    Args:
        module: with the settings of section ``model``.
        data: of section ``data``.
        rollout: of section ``rollout``.
        trainer: section ``trainer`` as it stands in the config.
        config: of the policy.
        gpus: processes of the trainer. None: ``trainer.devices`` times ``trainer.num_nodes``.
        gpu_memory_gib: of one GPU.

    Raises:
        ValueError: if a setting is none that can be planned, or the policy cannot be split as it says.
    """
    num_gpus = gpus or _num_devices(trainer.devices) * trainer.num_nodes
    strategy, tensor_parallel = _strategy(trainer, num_gpus)
    stored_bytes = 2 if getattr(config, "dtype", None) in (torch.bfloat16, torch.float16) else 4
    if tensor_parallel > 1:
        check_split_policy(module, [config], tensor_parallel)
    mixed = str(trainer.precision or "32-true")
    check_precision(mixed)
    sharding = module.sharding.with_precision(mixed) if strategy == "fsdp" else None
    precision = _precision(module.dtype_name, mixed, stored_bytes, sharding)
    roots, branches = rollout.branching.num_roots, rollout.branching.num_branches
    at_once = roots + branches if rollout.sampling.lag else max(roots, branches)
    state_bytes, foreach = _optimizer(module.optimizer, 4 if module.lora is not None else precision.weight)
    # With its adapter off, the policy is its own reference.
    is_reference = module.lora is not None and module.reference_folder == module.policy_folder
    return RunSettings(
        num_gpus=num_gpus,
        gpu_bytes=int(gpu_memory_gib * GIB),
        strategy=strategy,
        tensor_parallel=tensor_parallel,
        precision=precision,
        reference_bytes=precision.weight if module.loss.needs_reference and not is_reference else 0,
        is_quantized=module.lora is not None and module.lora.quantize is not None,
        state_bytes=state_bytes,
        foreach=foreach,
        checkpointing=module.gradient_checkpointing,
        micro_batch_tokens=module.max_tokens_per_microbatch,
        prompt_tokens=data.max_prompt_tokens,
        response_tokens=rollout.limits.max_response_tokens,
        trajectories=-(-data.prompts_per_iteration // num_gpus) * at_once,
        engine=_engine(rollout.sampler.engine, stored_bytes),
    )


def describe(plan: MemoryPlan) -> str:
    """Writes a table of what takes memory when, and whether that fits."""
    run, size = plan.run, plan.size
    lines = [
        f"{size.num_weights:,} weights, {run.num_gpus} x {run.gpu_bytes / GIB:g} GiB, {_strategy_name(run)}",
        "",
        _row("GiB on every GPU", PHASES),
        *(
            _row(item.name, (_gib(item.num_bytes) if phase in item.phases else "" for phase in PHASES))
            for item in plan.items
            if item.num_bytes
        ),
        _row("all", (_gib(plan.total(phase)) for phase in PHASES)),
        "",
        *verdict(plan),
    ]
    return "\n".join(lines)


def verdict(plan: MemoryPlan) -> list[str]:
    """Says whether a plan fits, what to change if not, and what the key-value cache holds; a line each."""
    run, usable = plan.run, USABLE_SHARE * plan.run.gpu_bytes
    room = f"{_gib(plan.peak)} of {_gib(usable)} GiB that can be used"
    lines = [f"fits: {room}"] if plan.fits else [f"does not fit: {room}"]
    if not plan.fits:
        changes = advice(plan.size, run)
        found = gpus_needed(plan.size, run) if changes is None else (run.num_gpus, changes)
        lines.append(_what_helps(run, *found) if found else "no number of GPUs helps")
    if plan.cache_tokens is not None:
        lines.append(
            f"key-value cache of an engine: {plan.cache_tokens:,} tokens, "
            f"{plan.cache_trajectories:,} trajectories of {run.longest_sequence:,} tokens at once; "
            f"{run.engine.max_batch_size:,} are allowed, {run.trajectories:,} wanted"
        )
    return lines


def _what_helps(run: RunSettings, num_gpus: int, changes: list[str]) -> str:
    where = ""
    if num_gpus != run.num_gpus and run.tensor_parallel > 1:
        where = f" on {num_gpus} GPUs with data_parallel_size={num_gpus // run.tensor_parallel}"
    elif num_gpus != run.num_gpus:
        where = f" in shards (fsdp2) on {num_gpus} GPUs"
    joint = "" if not changes else ", " if " with " in where else " with "
    return f"fits{where}{joint}{', '.join(changes)}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def _row(name: str, values: Iterable[str]) -> str:
    return f"{name:46}" + "".join(f"{value:>13}" for value in values)


def _strategy_name(run: RunSettings) -> str:
    names = {"single": "one process", "ddp": "ddp", "fsdp": "shards (fsdp2)"}
    parallel = f", {run.tensor_parallel} GPUs a layer" if run.tensor_parallel > 1 else ""
    return names[run.strategy] + parallel


def _num_devices(devices: int | str | list[int]) -> int:
    """Counts the devices of a node; `auto` and -1, all that there are, cannot be known here and count as one."""
    if isinstance(devices, list):
        return len(devices)
    number = int(devices) if str(devices).lstrip("-").isdigit() else 1
    return max(1, number)


def _strategy(trainer: Namespace, num_gpus: int) -> tuple[Strategy, int]:
    """Names the strategy, and counts the GPUs of a tensor-parallel group."""
    chosen = trainer.strategy
    name = chosen if isinstance(chosen, str) else chosen.class_path.rpartition(".")[2]
    kind = name.lower().removesuffix("strategy")
    if kind in ("auto", "singledevice"):
        return ("single" if num_gpus == 1 else "ddp"), 1
    if kind.startswith("ddp"):
        return "ddp", 1
    if kind.startswith("fsdp"):
        return "fsdp", 1
    if kind == "modelparallel" and not isinstance(chosen, str):
        return "fsdp", _tensor_parallel_size(chosen.get("init_args") or {}, trainer.num_nodes, num_gpus)
    raise ValueError(
        "trainer.strategy must be auto, ddp, fsdp, fsdp2 or ModelParallelStrategy with its sizes to be planned, "
        f"got {name!r}"
    )


def _tensor_parallel_size(sizes: Mapping[str, int | str], num_nodes: int, num_gpus: int) -> int:
    """Sizes the groups of Lightning's `ModelParallelStrategy`, which takes a node for one if nothing is said."""
    data, tensor = (sizes.get(f"{kind}_parallel_size", "auto") for kind in ("data", "tensor"))
    num_data = num_nodes if data == "auto" else int(data)
    num_tensor = num_gpus // num_nodes if tensor == "auto" else int(tensor)
    if num_data * num_tensor != num_gpus:
        raise ValueError(
            f"data_parallel_size x tensor_parallel_size of trainer.strategy must be the number of GPUs, {num_gpus}, "
            f"got {num_data} x {num_tensor}"
        )
    return num_tensor


def _precision(dtype: str, precision: str, stored_bytes: int, sharding: Sharding | None) -> Precision:
    weight: int = 2 if dtype in ("bfloat16", "float16") else stored_bytes if dtype == "auto" else 4
    unsharded: int = weight
    if sharding is not None and sharding.compute_dtype is not None:
        unsharded = sharding.compute_dtype.itemsize
    # Autocast leaves the residual stream in the precision of the weights.
    return Precision(weight, 2 if "mixed" in precision else unsharded, unsharded)


def _optimizer(
    make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer], num_bytes: int
) -> tuple[float, bool]:
    """Takes a step to find the bytes that an optimizer keeps for each weight, and whether it updates all at once.

    Args:
        make: the optimizer.
        num_bytes: of a number of the matrix, 2 or 4.
    """
    matrix = torch.nn.Parameter(torch.zeros(512, 512, dtype=torch.bfloat16 if num_bytes == 2 else torch.float32))
    optimizer = make([matrix])
    matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    kept = sum(v.nbytes for v in optimizer.state[matrix].values() if isinstance(v, torch.Tensor) and v.ndim > 0)
    options = optimizer.param_groups[0]
    return kept / matrix.numel(), options.get("foreach", False) is not False and not options.get("fused")


def _engine(engine: Engine, stored_bytes: int) -> EngineSettings:
    if isinstance(engine, VLLMServerEngine):
        return EngineSettings("server")
    if not isinstance(engine, (HFEngine, VLLMEngine)):
        raise ValueError(
            "rollout.engine must be HFEngine, VLLMEngine or VLLMServerEngine to be planned, "
            f"got {type(engine).__name__}"
        )
    by_name: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
    shared: dict[str, Any] = {
        "num_bytes": by_name.get(engine.dtype, stored_bytes),
        "max_batch_size": engine.max_batch_size,
        "prefill_tokens": engine.prefill_tokens,
    }
    if isinstance(engine, HFEngine):
        return EngineSettings("hf", **shared)
    return EngineSettings(
        "vllm",
        tensor_parallel=engine.tensor_parallel_size,
        memory_share=engine.gpu_memory_utilization,
        cache_bytes=None if engine.cache_gib is None else int(engine.cache_gib * GIB),
        sleeps=engine.sleep_level > 0,
        **shared,
    )
