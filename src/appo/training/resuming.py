"""What a run must have in common with the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from appo.distributed.checkpoint import check_versions, mark_version

if TYPE_CHECKING:
    from appo.training.module import APPOModule

_OPTIMIZER = "optimizer"


def mark_checkpoint(checkpoint: dict[str, Any], module: APPOModule) -> None:
    """Adds what `check_resumed` compares."""
    checkpoint[_OPTIMIZER] = _optimizer_name(module)
    mark_version(checkpoint)


def check_resumed(checkpoint: Mapping[str, Any], module: APPOModule) -> None:
    """Holds a checkpoint against the run that is to go on from it.

    Raises:
        ValueError: if weights or states of the optimizer are of another kind, or a later version has written it.
    """
    check_versions(checkpoint)
    saved = checkpoint.get("state_dict", {})
    if not module.strict_loading and saved.keys() != module.trained().keys():
        trained = module.trained().keys()
        raise ValueError(
            "ckpt_path must hold the adapter that model.lora describes and nothing else, got "
            f"{len(saved.keys() - trained)} other tensors and {len(trained - saved.keys())} missing"
        )
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    other = [name for name, tensor in saved.items() if name in own and tensor.shape != own[name]]
    if other:
        key = f"model.policy={module.policy_folder} has" if module.strict_loading else "model.lora describes"
        raise ValueError(
            f"ckpt_path must hold weights of the shapes that {key}, got {list(saved[other[0]].shape)} for {other[0]} "
            f"instead of {list(own[other[0]])}, and {len(other) - 1} more"
        )
    before, now = checkpoint.get(_OPTIMIZER), _optimizer_name(module)
    if before not in (None, now) and module.trainer.training:
        raise ValueError(
            f"model.optimizer must be {before}, as in the checkpoint, or there is no state to go on with, got {now}; "
            "to train with another one, start from the resumed run's policy instead"
        )


def _optimizer_name(module: APPOModule) -> str:
    return type(module.optimizer([nn.Parameter(torch.zeros(1))])).__name__
