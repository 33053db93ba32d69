"""The config that a run saved: which policy it began with, and which adapter it trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appo.commands.run_config import config_of_run, instantiate_plain, plain_value
from appo.policy.lora import LoRA


@dataclass(frozen=True)
class AdaptedRun:
    """What a run with an adapter trained.

    Attributes:
        config: where the run says so.
        lora: options of the adapter.
        dtype: that the policy was loaded in, as `model.dtype` names it.
    """

    config: Path
    lora: LoRA
    dtype: str


def policy_of_run(ckpt: Path) -> str:
    """Finds the policy that a run began with in the config in the run's folder.

    Args:
        ckpt: a checkpoint in the run's folder or in a folder of it.

    Raises:
        FileNotFoundError: if there is no config.
        ValueError: if it is not that of a run.
    """
    path, config = config_of_run(ckpt.absolute().parents[:2], "policy must be given")
    policy = plain_value(path, config, "model.policy")
    if not isinstance(policy, str):
        raise ValueError(f"policy must be given: {path} has no model.policy")
    return policy


def adapted_run(ckpt: Path) -> AdaptedRun:
    """Reads what a run with an adapter trained off the config in its folder; weights alone do not tell alpha.

    Args:
        ckpt: a checkpoint in the run's folder or in a folder of it.

    Raises:
        FileNotFoundError: if there is no config.
        ValueError: if it is not that of a run with an adapter.
    """
    path, config = config_of_run(
        ckpt.absolute().parents[:2], "ckpt must lie in its run's folder, since it has an adapter"
    )
    lora, dtype = (plain_value(path, config, key) for key in ("model.lora", "model.dtype"))
    if not isinstance(lora, dict) or not isinstance(dtype, str):
        name, value = ("dtype", dtype) if isinstance(lora, dict) else ("lora", lora)
        raise ValueError(f"model.{name} of {path} must be that of a run with an adapter, got {value}")
    return AdaptedRun(path, instantiate_plain(path, config, "model.lora", LoRA, "options of an adapter"), dtype)
