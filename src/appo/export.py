"""A checkpoint of a run as a Hugging Face folder, for whoever samples from the policy or trains it further."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from appo.checkpoint import PolicyWeights, open_weights
from appo.engines.stopping import load_generation_config
from appo.engines.weights import WeightLayout
from appo.policy import check_policy_folder, load_tokenizer

_SHOWN_NAMES = 3

_MAX_FILE_SIZE = "5GB"


def export_policy(
    ckpt: Path, out: Path, policy: str | None = None, dtype: Literal["float32", "bfloat16", "float16"] | None = None
) -> Path:
    """Writes the policy of a checkpoint as a folder that `AutoModelForCausalLM`, `AutoTokenizer` and vLLM load.

    Weights go as safetensors, tied ones once; config, tokenizer, chat template and generation config are those of the
    policy that the run began with. Weights of a single file are not copied in memory unless `dtype` asks for it; those
    of a sharded checkpoint are held once.

    Args:
        ckpt: checkpoint of a run, a file or a sharded folder.
        out: folder to write; must be empty or missing, and appears only once it is whole.
        policy: Hugging Face model folder or name with the architecture and the tokenizer; none takes ``model.policy``
            from the config that the run saved.
        dtype: of the weights; none keeps that of the checkpoint.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if there is no checkpoint, no config of the run, or no policy where it says.
        ValueError: if `out` is not empty, or if the checkpoint is not one of a run or does not fit the policy.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"out must be empty or missing, got {str(out)!r}")
    weights = open_weights(ckpt)
    base = policy or policy_of_run(ckpt)
    check_policy_folder(base)
    tokenizer = load_tokenizer(base)
    model = empty_policy(base, getattr(torch, dtype) if dtype else main_dtype(weights.tensors.values()))
    check_fit(weights.tensors, model)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=read_weights(weights, model, dtype), max_shard_size=_MAX_FILE_SIZE)
    # As it is: `save_pretrained` refuses generation configs that `from_pretrained` only warns of.
    load_generation_config(base, model.config).to_json_file(partial / "generation_config.json")
    tokenizer.save_pretrained(partial)
    os.replace(partial, out)
    return out


def policy_of_run(ckpt: Path) -> str:
    """The policy that a run began with, by the config in the run's folder.

    Args:
        ckpt: a checkpoint in the run's folder or in a folder of it.

    Raises:
        FileNotFoundError: if there is no config.
        ValueError: if it is not that of a run.
    """
    folders = ckpt.absolute().parents[:2]
    found = [
        path for folder in folders for path in (*folder.glob("config.yaml"), *folder.glob("*/version_*/config.yaml"))
    ]
    if not found:
        raise FileNotFoundError(f"policy must be given: no config.yaml of a run in {' or '.join(map(str, folders))}")
    newest = max(found, key=_version)
    config = OmegaConf.load(newest)
    policy = OmegaConf.select(config, "model.policy") if isinstance(config, DictConfig) else None
    if not isinstance(policy, str):
        raise ValueError(f"policy must be given: {newest} has no model.policy")
    return policy


def _version(config: Path) -> int:
    """Of the folder that a logger made for one start of a run; one without a logger has only one config."""
    number = config.parent.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def empty_policy(policy: str, dtype: torch.dtype) -> PreTrainedModel:
    """A policy whose parameters have shapes and no data.

    Args:
        policy: Hugging Face model folder or name.
        dtype: of the parameters.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(policy), dtype=dtype)
    model.tie_weights()
    return model


def check_fit(tensors: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Refuses weights that are not those of an architecture; of tied ones, one name is enough.

    Args:
        tensors: by parameter name.
        model: whose parameters may be on the meta device.

    Raises:
        ValueError: naming the first few weights that are missing, that nothing takes, or that have another shape.
    """
    expected = model.state_dict()
    aliases = WeightLayout.of(model).names
    missing = [name for name in expected if not any(alias in tensors for alias in aliases.get(name, (name,)))]
    unknown = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {list(tensor.shape)} for {list(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{what} {_first(names)}"
        for what, names in (("without", missing), ("with unknown", unknown), ("with", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"ckpt must have the weights of {type(model).__name__}, got one {', '.join(problems)}")


def read_weights(weights: PolicyWeights, model: PreTrainedModel, dtype: str | None) -> dict[str, Tensor]:
    """The weights of a policy under all names of each, tied ones as one tensor.

    Args:
        weights: of a checkpoint, checked by `check_fit`.
        model: the architecture.
        dtype: of the parameters; none keeps that of the checkpoint.

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
    """The data type of most weights."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
