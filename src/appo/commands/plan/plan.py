"""What a run takes on every GPU, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from appo.commands.plan.memory import (
    cache_bytes,
    layer_activations,
    log_prob_buffers,
    step_activations,
    step_workspace,
    weight_casts,
)
from appo.commands.plan.settings import GIB, EngineSettings, RunSettings
from appo.commands.plan.size import PolicySize

Phase = Literal["sampling", "log-probs", "update", "weight sync"]
PHASES: tuple[Phase, ...] = ("sampling", "log-probs", "update", "weight sync")

RUNTIME_BYTES = 2 * GIB
"""Of the CUDA context, kernels and the buffers of collectives on a GPU; an estimate."""

USABLE_SHARE = 0.95
"""Of a GPU's memory: what the allocator splits up is lost; an estimate."""

GRAPH_BYTES = 1 * GIB
"""Of vLLM's CUDA graphs; an estimate."""

SYNC_BYTES = 2**26
"""That weights on their way from shards to the engine take beside the largest part that is all-gathered."""

ADAPTER_BYTES = 4
"""Of a weight of an adapter, which peft keeps in float32."""

QUANTIZED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits, with the scale of its 64 in 8 bits, and that of 256 scales in float32."""


@dataclass(frozen=True)
class MemoryItem:
    """Bytes of one thing on one GPU.

    Attributes:
        name: what a person calls it.
        num_bytes: how much.
        phases: when it is there.
    """

    name: str
    num_bytes: int
    phases: tuple[Phase, ...] = PHASES


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one GPU over an iteration.

    Attributes:
        run: the settings.
        size: of the policy.
        items: everything that takes memory.
        cache_tokens: that the key-value cache of one engine holds; None where servers have their own.
    """

    run: RunSettings
    size: PolicySize
    items: tuple[MemoryItem, ...]
    cache_tokens: int | None

    def total(self, phase: Phase) -> int:
        """Adds up the bytes that are taken in a phase, at most."""
        return sum(item.num_bytes for item in self.items if phase in item.phases)

    @property
    def peak(self) -> int:
        """Bytes that are taken at most."""
        return max(self.total(phase) for phase in PHASES)

    @property
    def cache_trajectories(self) -> int | None:
        """Trajectories of the largest length that the key-value cache of one engine holds at once."""
        return None if self.cache_tokens is None else self.cache_tokens // self.run.longest_sequence

    @property
    def fits(self) -> bool:
        """Whether every phase has room, and the cache holds a trajectory."""
        return self.peak <= USABLE_SHARE * self.run.gpu_bytes and self.cache_trajectories != 0


def plan_memory(size: PolicySize, run: RunSettings) -> MemoryPlan:
    """Adds up what one GPU holds in each phase of an iteration.

    Persistent are, a shard each where weights are sharded: weights, optimizer state (`state_bytes` for each that is
    trained) and the reference. Gradients are there in the update; DDP holds them once more in its buckets. FSDP
    unshards two layers, embedding and LM head for the moment they are computed, and holds gradients of layers and LM
    head until they are sent: see "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (https://arxiv.org/abs/2304.11277).

    Processes of a tensor-parallel group unshard and compute their part of each layer. They have the same sequences and
    full hidden states between layers, a full embedding and a full LM head, and put some of the tokens through it each.

    Of a policy with an adapter, nothing else is trained: it has no gradient and no optimizer state.

    Args:
        size: of the policy.
        run: its settings.
    """
    return MemoryPlan(run, size, tuple(_items(size, run)), cache_tokens(size, run))


def cache_tokens(size: PolicySize, run: RunSettings) -> int | None:
    """Counts the tokens that the key-value cache of one engine holds; None where servers have their own.

    Of vLLM's share of the memory, it is what weights, the activations of a step and CUDA graphs leave. `HFEngine` takes
    what it needs: `trajectories` of the largest length.
    """
    engine = run.engine
    if engine.kind == "server":
        return None
    if engine.kind == "hf":
        return min(engine.max_batch_size, run.trajectories) * run.longest_sequence
    return max(0, _engine_cache_bytes(size, run)) // cache_bytes(size, engine.num_bytes, engine.tensor_parallel)


def _items(size: PolicySize, run: RunSettings) -> Iterator[MemoryItem]:
    yield MemoryItem("CUDA context and collectives", RUNTIME_BYTES)
    yield from _state_items(size, run)
    if run.strategy == "fsdp":
        yield from _unsharded_items(size, run)
    # Of frozen weights, a cast is kept for the backward pass alone.
    casts = 0 if run.is_quantized else weight_casts(size, run.precision, run.tensor_parallel)
    yield MemoryItem("casts of weights", casts, ("update",) if size.adapter_rank else ("log-probs", "update"))
    activations = step_activations(size, run.precision, run.checkpointing, run.tensor_parallel)
    yield MemoryItem("activations", run.step_tokens * activations, ("update",))
    # No weight is updated before the last activations are gone.
    workspace = max(step_workspace(size, run), _optimizer_workspace(size, run))
    yield MemoryItem("workspace of the update", workspace, ("update",))
    yield MemoryItem("activations and log-probs without gradients", _forward_bytes(size, run), ("log-probs",))
    yield from _engine_items(size, run)
    yield MemoryItem("weights on their way to the engine", _sync_bytes(size, run), ("weight sync",))


def _state_items(size: PolicySize, run: RunSettings) -> Iterator[MemoryItem]:
    shards, linear = run.num_shards, size.num_layers * size.linear_layer_weights
    weights = size.num_weights * run.precision.weight
    if run.is_quantized:
        weights -= int(linear * (run.precision.weight - QUANTIZED_BYTES))
    adapter = size.adapter_weights * ADAPTER_BYTES
    yield MemoryItem("weights", weights // shards)
    yield MemoryItem("adapter", adapter // shards)
    yield MemoryItem("optimizer state", int((size.adapter_weights or size.num_weights) * run.state_bytes / shards))
    yield MemoryItem("reference", size.num_weights * run.reference_bytes // shards)
    buckets = 2 if run.strategy == "ddp" else 1
    yield MemoryItem("gradients", (adapter or weights) // shards * buckets, ("update",))


def _unsharded_items(size: PolicySize, run: RunSettings) -> Iterator[MemoryItem]:
    layers = 2 * size.layer_weights // run.tensor_parallel
    adapters = 2 * size.adapter_weights // size.num_layers
    unsharded = layers + adapters + size.vocabulary_weights
    # That of the embedding comes last, when activations are gone.
    gradients = adapters or layers + size.lm_head_weights
    yield MemoryItem("unsharded layers", unsharded * run.precision.residual, ("log-probs", "update"))
    yield MemoryItem("gradients of unsharded layers", gradients * run.precision.residual, ("update",))


def _optimizer_workspace(size: PolicySize, run: RunSettings) -> int:
    """Counts a copy of a state of all weights that are updated at once, or two of the largest one."""
    trained = (size.adapter_weights * ADAPTER_BYTES or size.num_weights * run.precision.weight) // run.num_shards
    largest = 2 * size.largest_weight * run.precision.weight // run.num_shards
    return trained if run.foreach and run.strategy != "fsdp" else min(trained, largest)


def _forward_bytes(size: PolicySize, run: RunSettings) -> int:
    """Counts one layer at a time, then the LM head."""
    layer = run.step_tokens * layer_activations(size, run.precision, run.tensor_parallel)
    return max(layer, log_prob_buffers(size, run.step_scored, run.device))


def _engine_items(size: PolicySize, run: RunSettings) -> Iterator[MemoryItem]:
    engine = run.engine
    if engine.kind == "server":
        return
    weights = size.num_weights * engine.num_bytes // engine.tensor_parallel
    # Log-probs of what was sampled are taken while the engine is awake: branches are sampled next.
    phases = tuple(phase for phase in PHASES if phase != "update" or engine.kind == "hf" or not engine.sleeps)
    yield MemoryItem("engine: weights", weights, phases)
    if engine.kind == "hf":
        cache = (cache_tokens(size, run) or 0) * cache_bytes(size, engine.num_bytes)
        yield MemoryItem("engine: key-value cache", cache)
        yield MemoryItem("engine: workspace", _engine_workspace(size, engine), ("sampling",))
        return
    yield MemoryItem("engine: key-value cache", max(0, _engine_cache_bytes(size, run)), phases)
    yield MemoryItem("engine: workspace", _engine_workspace(size, engine) + GRAPH_BYTES, phases)


def _engine_cache_bytes(size: PolicySize, run: RunSettings) -> int:
    engine = run.engine
    if engine.cache_bytes is not None:
        return engine.cache_bytes
    weights = size.num_weights * engine.num_bytes // engine.tensor_parallel
    return int(engine.memory_share * run.gpu_bytes) - weights - _engine_workspace(size, engine) - GRAPH_BYTES


def _engine_workspace(size: PolicySize, engine: EngineSettings) -> int:
    """Counts residual streams and MLP of the tokens of a step, and logits of its sequences, three times."""
    inside = 4 * size.hidden_size + 3 * size.mlp_size // engine.tensor_parallel
    return engine.prefill_tokens * inside * engine.num_bytes + 3 * 4 * engine.max_batch_size * size.vocab_size


def _sync_bytes(size: PolicySize, run: RunSettings) -> int:
    """Counts nothing where a full tensor is copied as it is; else the largest that is cast, merged or all-gathered.

    An adapter is merged with its product beside the weight. Of unsharded weights, vLLM collects those of one of its
    modules, which are a part of a decoder layer.
    """
    largest, merged = size.largest_weight, 2 if size.adapter_rank else 0
    if run.strategy == "fsdp":
        return (max(size.layer_weights, largest) + merged * largest) * run.precision.weight + SYNC_BYTES
    cast = 0 if run.engine.num_bytes == run.precision.weight else largest * run.engine.num_bytes
    return cast + merged * largest * run.precision.weight
