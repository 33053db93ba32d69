"""What a run takes on every GPU, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from appo.commands.plan.memory import (
    Precision,
    cache_bytes,
    layer_activations,
    log_prob_buffers,
    step_activations,
    step_workspace,
    weight_casts,
)
from appo.commands.plan.size import PolicySize

GIB = 2**30
MIB = 2**20

Phase = Literal["sampling", "log-probs", "update", "hand-over"]
PHASES: tuple[Phase, ...] = ("sampling", "log-probs", "update", "hand-over")

RUNTIME_BYTES = 2 * GIB
"""Of the CUDA context, kernels and the buffers of collectives on a GPU; an estimate."""

USABLE_SHARE = 0.95
"""Of a GPU's memory: what the allocator splits up is lost; an estimate."""

GRAPH_BYTES = 1 * GIB
"""Of vLLM's CUDA graphs; an estimate."""

HAND_OVER_BYTES = 64 * MIB
"""That weights on their way from shards to the engine take beside the largest part that is gathered."""

LOG_PROB_CHUNK_BYTES = 1 * GIB
"""Of the vocabulary-sized tensors of a chunk on a GPU."""


@dataclass(frozen=True)
class EnginePlan:
    """Who samples, as far as memory is concerned.

    Attributes:
        kind: `hf` and `vllm` share the trainer's GPUs, `server` has its own.
        num_bytes: of its weights and of its key-value cache.
        tensor_parallel: GPUs that share every layer of it.
        max_batch_size: sequences generated at once.
        prefill_tokens: that one step computes at most.
        memory_share: of a GPU that vLLM takes while it is awake.
        cache_bytes: of the key-value cache in all; None takes what `memory_share` leaves.
        sleeps: whether its memory is free while the policy is updated.
    """

    kind: Literal["hf", "vllm", "server"] = "hf"
    num_bytes: int = 2
    tensor_parallel: int = 1
    max_batch_size: int = 256
    prefill_tokens: int = 8192
    memory_share: float = 0.5
    cache_bytes: int | None = None
    sleeps: bool = True


@dataclass(frozen=True)
class RunPlan:
    """What of a run's settings decides about memory.

    Attributes:
        num_gpus: processes of the trainer, one a GPU.
        gpu_bytes: memory of one.
        strategy: `single`, `ddp` (all hold everything), or `fsdp` (weights, gradients and optimizer state in shards).
        tensor_parallel: processes that share every layer in training.
        precision: of the training step.
        reference_bytes: of a weight of the frozen reference; 0 if there is none.
        optimizer_states: numbers that the optimizer keeps for every weight.
        foreach: whether the optimizer takes a copy of a state to update all weights at once.
        checkpointing: whether layers are computed again in the backward pass.
        micro_batch_tokens: that go through the model at once; a longer trajectory goes alone.
        scored_tokens: those of them whose log-probs are taken; None counts all.
        prompt_tokens: of the longest prompt.
        response_tokens: of the longest response.
        trajectories: that one process samples at once, at most.
        chunk_bytes: of the vocabulary-sized tensors of a chunk; None takes the log-probs of a micro-batch at once.
        engine: who samples.
    """

    num_gpus: int = 1
    gpu_bytes: int = 80 * GIB
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    tensor_parallel: int = 1
    precision: Precision = field(default_factory=Precision)
    reference_bytes: int = 0
    optimizer_states: float = 2.0
    foreach: bool = True
    checkpointing: bool = False
    micro_batch_tokens: int = 16384
    scored_tokens: int | None = None
    prompt_tokens: int = 2048
    response_tokens: int = 2048
    trajectories: int = 256
    chunk_bytes: int | None = LOG_PROB_CHUNK_BYTES
    engine: EnginePlan = field(default_factory=EnginePlan)

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ValueError(f"gpus must be positive, got {self.num_gpus}")
        if self.gpu_bytes <= 0:
            raise ValueError(f"gpu_memory_gib must be positive, got {self.gpu_bytes / GIB}")
        if self.tensor_parallel > 1 and self.strategy != "fsdp":
            raise ValueError(f"tensor_parallel_size must be 1 without shards, got {self.tensor_parallel}")
        for name, parts in (("tensor_parallel", self.tensor_parallel), ("engine's", self.engine.tensor_parallel)):
            if self.num_gpus % parts:
                raise ValueError(f"{name} tensor_parallel_size must divide {self.num_gpus} GPUs, got {parts}")

    @property
    def longest_row(self) -> int:
        """Tokens of the longest trajectory."""
        return self.prompt_tokens + self.response_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return max(self.micro_batch_tokens, self.longest_row)

    @property
    def step_scored(self) -> int:
        """Tokens of the largest micro-batch that one process puts through the output head, at most."""
        scored = self.step_tokens if self.scored_tokens is None else self.scored_tokens
        return -(-scored // self.tensor_parallel)

    @property
    def num_shards(self) -> int:
        """Processes that share the weights."""
        return self.num_gpus if self.strategy == "fsdp" else 1


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

    run: RunPlan
    size: PolicySize
    items: tuple[MemoryItem, ...]
    cache_tokens: int | None

    def total(self, phase: Phase) -> int:
        """Bytes that are taken in a phase, at most."""
        return sum(item.num_bytes for item in self.items if phase in item.phases)

    @property
    def peak(self) -> int:
        """Bytes that are taken at most."""
        return max(self.total(phase) for phase in PHASES)

    @property
    def cache_trajectories(self) -> int | None:
        """Trajectories of the largest length that the key-value cache of one engine holds at once."""
        return None if self.cache_tokens is None else self.cache_tokens // self.run.longest_row

    @property
    def fits(self) -> bool:
        """Whether every phase has room, and the cache holds a trajectory."""
        return self.peak <= USABLE_SHARE * self.run.gpu_bytes and self.cache_trajectories != 0


def plan_memory(size: PolicySize, run: RunPlan) -> MemoryPlan:
    """Adds up what one GPU holds in each phase of an iteration.

    Persistent are, a shard each where weights are sharded: weights, optimizer state (``optimizer_states`` numbers a
    weight) and the reference. Gradients are there in the update; DDP holds them once more in its buckets. FSDP gathers
    two layers, embedding and head for the moment they are computed, and holds gradients of layers and head until they
    are sent: see "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (https://arxiv.org/abs/2304.11277).

    Processes that compute layers together gather and compute their part of them. They have the same rows and whole
    hidden states between layers, a whole embedding and a whole head, and put some of the rows through it each.

    Args:
        size: of the policy.
        run: its settings.
    """
    return MemoryPlan(run, size, tuple(_items(size, run)), cache_tokens(size, run))


def cache_tokens(size: PolicySize, run: RunPlan) -> int | None:
    """Tokens that the key-value cache of one engine holds; None where servers have their own.

    Of vLLM's share of the memory, it is what weights, the activations of a step and CUDA graphs leave. `HFEngine` takes
    what it needs: `trajectories` of the largest length.
    """
    engine = run.engine
    if engine.kind == "server":
        return None
    if engine.kind == "hf":
        return min(engine.max_batch_size, run.trajectories) * run.longest_row
    return max(0, _engine_cache_bytes(size, run)) // cache_bytes(size, engine.num_bytes, engine.tensor_parallel)


def _items(size: PolicySize, run: RunPlan) -> Iterator[MemoryItem]:
    precision, shards = run.precision, run.num_shards
    weights = size.num_weights * precision.weight // shards
    yield MemoryItem("CUDA context and collectives", RUNTIME_BYTES)
    yield MemoryItem("weights", weights)
    yield MemoryItem("optimizer state", int(weights * run.optimizer_states))
    yield MemoryItem("reference", size.num_weights * run.reference_bytes // shards)
    yield MemoryItem("gradients", weights * (2 if run.strategy == "ddp" else 1), ("update",))
    if run.strategy == "fsdp":
        layers = 2 * size.layer_weights // run.tensor_parallel
        gathered = (layers + size.embedding_weights + size.head_weights) * precision.residual
        # That of the embedding comes last, when activations are gone.
        gradients = (layers + size.vocab_size * size.hidden_size) * precision.residual
        yield MemoryItem("gathered layers", gathered, ("log-probs", "update"))
        yield MemoryItem("gradients of gathered layers", gradients, ("update",))
    casts = weight_casts(size, precision, run.tensor_parallel)
    yield MemoryItem("casts of weights", casts, ("log-probs", "update"))
    yield MemoryItem(
        "activations",
        run.step_tokens * step_activations(size, precision, run.checkpointing, run.tensor_parallel),
        ("update",),
    )
    work = step_workspace(
        size,
        precision,
        run.step_tokens,
        run.step_scored,
        run.checkpointing,
        run.chunk_bytes,
        run.tensor_parallel,
        run.strategy == "fsdp",
    )
    # No weight is updated before the last activations are gone.
    one_by_one = 2 * size.largest_weight * precision.weight // shards
    optimizer = weights if run.foreach and run.strategy != "fsdp" else one_by_one
    yield MemoryItem("workspace of the update", max(work, optimizer), ("update",))
    yield MemoryItem("activations and log-probs without gradients", _forward_bytes(size, run), ("log-probs",))
    yield from _engine_items(size, run)
    yield MemoryItem("weights on their way to the engine", _hand_over_bytes(size, run), ("hand-over",))


def _forward_bytes(size: PolicySize, run: RunPlan) -> int:
    """One layer at a time, then the head."""
    layer = run.step_tokens * layer_activations(size, run.precision, run.tensor_parallel)
    return max(layer, log_prob_buffers(size, run.step_scored, run.chunk_bytes))


def _engine_items(size: PolicySize, run: RunPlan) -> Iterator[MemoryItem]:
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


def _engine_cache_bytes(size: PolicySize, run: RunPlan) -> int:
    engine = run.engine
    if engine.cache_bytes is not None:
        return engine.cache_bytes
    weights = size.num_weights * engine.num_bytes // engine.tensor_parallel
    return int(engine.memory_share * run.gpu_bytes) - weights - _engine_workspace(size, engine) - GRAPH_BYTES


def _engine_workspace(size: PolicySize, engine: EnginePlan) -> int:
    """Residual streams and MLP of the tokens of a step, and logits, log-softmax and a sorted copy of its sequences."""
    inside = 4 * size.hidden_size + 3 * size.mlp_size // engine.tensor_parallel
    return engine.prefill_tokens * inside * engine.num_bytes + 3 * 4 * engine.max_batch_size * size.vocab_size


def _hand_over_bytes(size: PolicySize, run: RunPlan) -> int:
    """Nothing where a whole weight is copied as it is; else the largest that is cast or gathered, whole on every GPU.

    Of gathered weights, vLLM collects those of one of its modules, which are a part of a decoder layer.
    """
    if run.strategy != "fsdp":
        return 0 if run.engine.num_bytes == run.precision.weight else size.largest_weight * run.engine.num_bytes
    return max(size.layer_weights, size.largest_weight) * run.precision.weight + HAND_OVER_BYTES
