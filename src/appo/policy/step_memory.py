"""What an optimizer step will need of a device's memory, read off the model and the optimizer before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from transformers import PreTrainedModel

from appo.distributed.gather import gathered
from appo.functional import chunk_bytes
from appo.policy.output_head import find_linear_head

_PROBE_TOKENS = 64

_PLAIN_LOGITS = 4
"""Tensors in single precision that log-probs and entropies keep of all logits, with their gradients."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device; a table as a string.

    Attributes:
        weights: of the policy, exactly.
        reference: weights of a reference model, exactly.
        gradients: of what is trained, exactly.
        optimizer: its state, exactly.
        activations: of the largest micro-batch, kept for its backward pass; an estimate.
        log_probs: chunks of the output head, and the gradient that they sum up; an estimate.
    """

    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int
    log_probs: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return "\n".join(f"{name:<12}{value / 2**20:>14,.2f} MiB" for name, value in [*rows, ("total", self.total)])


def memory_of_step(
    policy: PreTrainedModel, reference: nn.Module | None, optimizer: Optimizer, max_tokens: int
) -> StepMemory:
    """Looks at everything as it is: what is frozen, quantized, sharded, checkpointed or in low precision.

    A short sequence passes the policy, forward, and the optimizer steps once for a parameter of each shape, made for
    it; neither leaves a trace.

    Args:
        policy: on its device, in training mode.
        reference: a second model in memory; None if there is none.
        optimizer: of the policy.
        max_tokens: of a micro-batch.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    with_shards = {
        "weights": _bytes(policy.parameters()) + _bytes(policy.buffers()),
        "reference": 0 if reference is None else _bytes(reference.parameters()),
        "gradients": _bytes(trained),
        "optimizer": _optimizer_bytes(optimizer),
    }
    with gathered(policy):
        return StepMemory(
            **with_shards,
            activations=_activation_bytes(policy, max_tokens),
            log_probs=_log_prob_bytes(policy, max_tokens),
        )


def _local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is on this device."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_local(tensor).nbytes for tensor in tensors)


def _optimizer_bytes(optimizer: Optimizer) -> int:
    """By a step with parameters of the same shapes, one after the other."""
    known: dict[tuple[int, torch.Size, torch.dtype], int] = {}
    total = 0
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            key = (number, parameter.shape, parameter.dtype)
            if key not in known:
                stand_in = nn.Parameter(torch.zeros_like(parameter))
                stand_in.grad = torch.zeros_like(parameter)
                make: Callable[..., Optimizer] = type(optimizer)
                trial = make([{**group, "params": [stand_in]}])
                trial.step()
                known[key] = _bytes(value for value in trial.state[stand_in].values() if isinstance(value, Tensor))
            total += known[key]
    return total


def _activation_bytes(policy: PreTrainedModel, num_tokens: int) -> int:
    """What a short sequence keeps for the backward pass, in proportion; a checkpointed layer is recomputed alone."""
    kept = _kept_per_token(policy)
    if policy.is_gradient_checkpointing:
        policy.gradient_checkpointing_disable()
        kept += _kept_per_token(policy) / policy.config.get_text_config().num_hidden_layers
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return round(kept * num_tokens)


def _kept_per_token(policy: PreTrainedModel) -> float:
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None) or _PROBE_TOKENS
    long = min(_PROBE_TOKENS, positions)
    short = long // 2
    return (_kept_bytes(policy, long) - _kept_bytes(policy, short)) / (long - short)


def _kept_bytes(policy: PreTrainedModel, length: int) -> int:
    device = policy.device
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = _local(tensor).untyped_storage()
        # Where a policy is sharded, weights are gathered for the moment: which ones they are changes.
        if all(storage.data_ptr() != _local(own).untyped_storage().data_ptr() for own in owned()):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def owned() -> Iterator[Tensor]:
        yield from policy.parameters()
        yield from policy.buffers()

    token_ids = torch.zeros(1, length, dtype=torch.int64, device=device)
    # Dropout must not draw what the training would have drawn.
    with torch.random.fork_rng([device] if device.type == "cuda" else []), saved_tensors_hooks(note, lambda x: x):
        outputs = policy.get_decoder()(input_ids=token_ids, use_cache=False)
    del outputs
    return sum(kept.values())


def _log_prob_bytes(policy: PreTrainedModel, num_tokens: int) -> int:
    vocab_size: int = policy.config.get_text_config().vocab_size
    head = find_linear_head(policy)
    if head is None:
        return _PLAIN_LOGITS * num_tokens * vocab_size * torch.float32.itemsize
    weight = head.linear.weight
    gradient = _bytes([weight]) if weight.requires_grad else 0
    return gradient + chunk_bytes(num_tokens, vocab_size, policy.dtype, weight.device.type)
