"""What of a run's settings decides about memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Precision:
    """Bytes of the numbers in a training step.

    Attributes:
        weight: of parameters, gradients and optimizer state, 2 or 4.
        compute: of what goes into a matrix product, 2 or 4.
        residual: of what layers hand on to one another, and of unsharded weights, 2 or 4.
    """

    weight: int = 4
    compute: int = 4
    residual: int = 4

    @property
    def is_autocast(self) -> bool:
        """Whether weights and inputs are cast at every product, and the residual stream is not."""
        return self.residual > self.compute


@dataclass(frozen=True)
class EngineSettings:
    """Who samples, as far as memory is concerned.

    Attributes:
        kind: `hf` and `vllm` share the trainer's GPUs, `server` has its own.
        num_bytes: of its weights and of its key-value cache.
        tensor_parallel: GPUs that share every layer of it.
        max_batch_size: sequences generated at once.
        prefill_tokens: that one step computes at most.
        memory_share: of a GPU that vLLM takes while it is awake.
        cache_bytes: of the key-value cache in all; None: what `memory_share` leaves.
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
class RunSettings:
    """How a run trains and samples.

    Attributes:
        num_gpus: processes of the trainer, one a GPU.
        gpu_bytes: memory of one.
        strategy: `single`, `ddp` (all hold everything), or `fsdp` (weights, gradients and optimizer state in shards).
        tensor_parallel: processes that share every layer in training.
        precision: of the training step.
        reference_bytes: of a weight of the frozen reference; 0 if there is none.
        is_quantized: whether the linear layers of the policy keep their weights in 4 bits, beside an adapter.
        state_bytes: that the optimizer keeps for every weight that is trained.
        foreach: whether the optimizer takes a copy of a state to update all weights at once.
        checkpointing: whether layers are computed again in the backward pass.
        micro_batch_tokens: that go through the model at once; a longer trajectory goes alone.
        scored_tokens: those of them whose log-probs are taken; None counts all.
        prompt_tokens: of the longest prompt.
        response_tokens: of the longest response.
        trajectories: that one process samples at once, at most.
        device: that trains, which decides how large the chunks of the LM head are.
        engine: who samples.
    """

    num_gpus: int = 1
    gpu_bytes: int = 80 * GIB
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    tensor_parallel: int = 1
    precision: Precision = field(default_factory=Precision)
    reference_bytes: int = 0
    is_quantized: bool = False
    state_bytes: float = 8.0
    foreach: bool = True
    checkpointing: bool = False
    micro_batch_tokens: int = 16384
    scored_tokens: int | None = None
    prompt_tokens: int = 2048
    response_tokens: int = 2048
    trajectories: int = 256
    device: Literal["cuda", "cpu"] = "cuda"
    engine: EngineSettings = field(default_factory=EngineSettings)

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
    def longest_sequence(self) -> int:
        """Tokens of the longest trajectory."""
        return self.prompt_tokens + self.response_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return max(self.micro_batch_tokens, self.longest_sequence)

    @property
    def step_scored(self) -> int:
        """Tokens of the largest micro-batch that one process puts through the LM head, at most."""
        scored = self.step_tokens if self.scored_tokens is None else self.scored_tokens
        return -(-scored // self.tensor_parallel)

    @property
    def num_shards(self) -> int:
        """Processes that share the weights."""
        return self.num_gpus if self.strategy == "fsdp" else 1
