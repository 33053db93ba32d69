"""Weights of a checkpoint, held against the architecture that is to take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from appo.distributed.checkpoint import PolicyWeights
from appo.policy.architecture import empty_model
from appo.policy.weight_layout import WeightLayout

_SHOWN_NAMES = 3


def full_policy(weights: PolicyWeights, policy: str, dtype: str | None) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint that has all of a policy's, under all names of each.

    Args:
        weights: of the checkpoint.
        policy: Hugging Face model folder or name with the architecture.
        dtype: of the weights. None: that of the checkpoint.

    Raises:
        ValueError: if they are not those of the architecture.
    """
    model = empty_policy(policy, torch.float32)
    check_fit(weights.tensors, model)
    return read_weights(weights, model, dtype)


def empty_policy(policy: str, dtype: torch.dtype) -> PreTrainedModel:
    """Builds a policy whose parameters have shapes and no data.

    Args:
        policy: Hugging Face model folder or name.
        dtype: of the parameters.
    """
    return empty_model(AutoConfig.from_pretrained(policy), dtype)


def check_fit(tensors: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Refuses weights that are not those of an architecture; of tied ones, one name is enough.

    Args:
        tensors: by parameter name.
        model: whose parameters may be on the meta device.

    Raises:
        ValueError: naming the first few weights that are missing, that nothing takes, or that have another shape.
    """
    if problems := misfits(tensors, model.state_dict(), WeightLayout.of(model).names):
        raise ValueError(f"ckpt must have the weights of {type(model).__name__}, got one {problems}")


def misfits(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]] | None = None
) -> str:
    """Says what is wrong with tensors: the first few that are missing, unknown or of another shape; empty if nothing.

    Args:
        tensors: by name.
        expected: by name; their shapes are looked at.
        names: for an expected tensor with several names, all of them, of which one is enough.
    """
    names = names or {}
    missing = [name for name in expected if not any(alias in tensors for alias in names.get(name, (name,)))]
    unknown = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {list(tensor.shape)} for {list(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    return ", ".join(
        f"{what} {_first(some)}"
        for what, some in (("without", missing), ("with unknown", unknown), ("with", misshapen))
        if some
    )


def read_weights(weights: PolicyWeights, model: PreTrainedModel, dtype: str | None) -> dict[str, Tensor]:
    """Reads the weights of a policy under all names of each, tied ones as one tensor.

    Args:
        weights: of a checkpoint, checked by `check_fit`.
        model: the architecture.
        dtype: of the parameters. None: that of the checkpoint.

    Raises:
        ValueError: if weights that the architecture ties differ.
    """
    state = weights.read(weights.tensors)
    for names in set(WeightLayout.of(model).names.values()):
        present = [name for name in names if name in state]
        for other in present[1:]:
            if not torch.equal(state[other], state[present[0]]):
                raise ValueError(
                    f"ckpt must have equal weights where {type(model).__name__} ties them: {_first(names)}"
                )
        tensor = state[present[0]] if dtype is None else state[present[0]].to(getattr(torch, dtype))
        state.update(dict.fromkeys(names, tensor))
    return state


def main_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Finds the data type of most weights."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
