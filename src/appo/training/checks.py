"""What must hold between the parts of a run before anything is started."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from transformers import AutoConfig, PreTrainedConfig

from appo.core.trajectory import Prompt
from appo.distributed import comm
from appo.distributed.fsdp import OFFLOADING_BACKENDS, Meshes, is_sharded
from appo.distributed.tensor_parallel import check_split
from appo.engines import Engine
from appo.policy.loading import max_positions
from appo.rewards import Reward
from appo.rollouts import Limits
from appo.scorers import Scorer
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule

log = logging.getLogger(__name__)


def can_overlap(overlap: bool | None, lag: int, engine: Engine) -> bool:
    """Whether the next iteration is sampled while the current one trains.

    Args:
        overlap: whether that is wanted; None takes it where it can be had.
        lag: iterations between sampling and training.
        engine: samples.

    Raises:
        ValueError: if it is wanted and cannot be.
    """
    if overlap and lag == 0:
        raise ValueError("rollout.sampling.lag must be 1 with rollout.sampling.overlap=true, got 0")
    if overlap and not engine.is_asynchronous:
        raise ValueError(
            "rollout.engine must be one that samples without the trainer's devices, such as VLLMServerEngine, with "
            f"rollout.sampling.overlap=true, got {type(engine).__name__}"
        )
    return lag == 1 and engine.is_asynchronous and overlap is not False


def must_branch_together(module: APPOModule, engine: Engine) -> bool:
    """Whether branches wait for the roots of all prompts, since processes take every step together; the log says why.

    Args:
        module: evaluates roots: a sharded policy is gathered layer by layer, by all processes at the same time.
        engine: samples them, if it is shared, with the requests of all processes.
    """
    assert module.policy is not None
    if comm.num_ranks() == 1 or not (is_sharded(module.policy) or engine.is_shared):
        return False
    why = "one engine samples for them" if engine.is_shared else "each has a shard of the policy"
    log.info("branches wait for the roots of all prompts on all processes, since %s", why)
    return True


def warn_of_float32(device: torch.device, precision: str, module: APPOModule) -> None:
    """Says so if a GPU is to multiply matrices in float32.

    Args:
        device: of the trainer.
        precision: of the trainer.
        module: with the settings of section ``model``.
    """
    is_low = precision == "bf16-mixed" or module.dtype_name != "float32" or module.sharding.param_dtype is not None
    if device.type == "cuda" and not is_low:
        log.warning(
            "trainer.precision=%s computes in float32 on a GPU; trainer.precision=bf16-mixed takes a fraction of the "
            "time and less memory, with weights and optimizer state as they are",
            precision,
        )


def check_ranks(trainer: L.Trainer, module: APPOModule, data: RolloutDataModule, scorer: Scorer) -> None:
    """Refuses what several processes cannot do together.

    Raises:
        ValueError: if the strategy, the number of prompts or the scorer is of that kind.
    """
    number, minibatch = trainer.world_size, data.prompts_per_iteration // data.num_minibatches
    if number == 1:
        return
    strategy = trainer.strategy
    if not isinstance(strategy, (DDPStrategy, ModelParallelStrategy)):
        raise ValueError(
            "trainer.strategy must be ddp, fsdp2 or ModelParallelStrategy on several processes, got "
            f"{type(strategy).__name__}"
        )
    offloads = isinstance(strategy, ModelParallelStrategy) and module.sharding.cpu_offload
    if offloads and strategy.root_device.type == "cuda" and "cpu:" not in (strategy.process_group_backend or ""):
        raise ValueError(
            f"trainer.strategy.process_group_backend must be {OFFLOADING_BACKENDS} with "
            f"model.sharding.cpu_offload=true, got {strategy.process_group_backend}"
        )
    if minibatch < number:
        raise ValueError(f"data.prompts_per_minibatch must be at least one a process, {number}, got {minibatch}")
    if getattr(scorer, "scope", None) == "batch":
        raise ValueError(
            "rollout.scorer.scope must be trajectory or prompt on several processes, which score apart, got batch"
        )


def check_tensor_parallel(module: APPOModule) -> int:
    """Sizes the tensor-parallel group of this process, if the policy can be split in it.

    Raises:
        ValueError: if the policy or the reference cannot be split among them, is to be compiled, or has an adapter.
    """
    meshes = Meshes.of(module.device_mesh)
    if meshes is None or meshes.tensor is None:
        return 1
    folders = {module.policy_folder, *([module.reference_folder] if module.loss.needs_reference else [])}
    size = meshes.tensor.size()
    check_split_policy(module, [AutoConfig.from_pretrained(folder) for folder in sorted(folders)], size)
    return size


def check_split_policy(module: APPOModule, configs: Iterable[PreTrainedConfig], size: int) -> None:
    """Refuses what a tensor-parallel group cannot train.

    Args:
        module: with the settings of section ``model``.
        configs: of its policy and reference.
        size: processes of the group.

    Raises:
        ValueError: if a model cannot be split among them, is to be compiled, or has an adapter.
    """
    if module.lora is not None:
        raise ValueError(
            f"model.lora must be null with trainer.strategy.tensor_parallel_size = {size}; trainer.strategy=fsdp2 "
            "shards the policy that an adapter stands beside"
        )
    if module.is_compiled:
        # Compiling the backward pass of split layers over sequences of all lengths ends in a recursion of torch's.
        raise ValueError(f"model.compile must be false with trainer.strategy.tensor_parallel_size = {size}, got true")
    for config in configs:
        check_split(config, size)


def check_engine_device(engine: Engine, device: torch.device, num_ranks: int) -> None:
    """Refuses a GPU on which an engine of the training process would not sample.

    Raises:
        ValueError: if the engine takes the first GPU, and the policy is on another one.
    """
    if num_ranks == 1 and engine.takes_first_device and device.type == "cuda" and (device.index or 0) > 0:
        raise ValueError(
            f"trainer.devices must be the first GPU that the process sees with {type(engine).__name__} in one process, "
            f"got [{device.index}]; CUDA_VISIBLE_DEVICES={device.index} makes it the first"
        )


def check_positions(module: APPOModule, data: RolloutDataModule, engine: Engine, limits: Limits) -> None:
    """Refuses trajectories that may become longer than policy or engine can take.

    Raises:
        ValueError: if the longest prompt and the longest response do not fit together.
    """
    needed = data.max_prompt_tokens + limits.max_response_tokens
    for limit, name in (
        (max_positions(module.policy_folder), "the {} positions of model.policy"),
        (engine.max_length or None, "rollout.engine.max_length = {}"),
    ):
        if limit is not None and needed > limit:
            raise ValueError(
                f"data.max_prompt_tokens + rollout.limits.max_response_tokens must not exceed {name.format(limit)}, "
                f"got {data.max_prompt_tokens} + {limits.max_response_tokens}"
            )


def check_columns(prompts: Iterable[Prompt], reward: Reward) -> None:
    """Refuses a reward that needs fields of rows which prompts do not bring.

    Args:
        prompts: a few of those that will be sampled from.
        reward: what a trajectory is worth.

    Raises:
        ValueError: if one lacks a field.
    """
    for prompt in prompts:
        if missing := sorted(reward.columns - prompt.columns.keys()):
            raise ValueError(
                f"rollout.reward must get what its parameters name from options, or from rows by data.source.columns, "
                f"got {', '.join(prompt.columns) or 'no column'} with prompt {prompt.id!r} for {missing[0]!r}"
            )
