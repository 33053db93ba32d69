"""The command ``appo export``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from torch import Tensor

from appo.commands.export.adapted import AdaptedPolicy, holds_adapter
from appo.commands.export.run_config import adapted_run, policy_of_run
from appo.commands.export.weights import empty_policy, main_dtype, whole_policy
from appo.distributed.checkpoint import open_weights
from appo.engines.hf.stopping import load_generation_config
from appo.policy.loading import check_policy_folder, load_tokenizer
from appo.policy.saving import write_model

_MAX_FILE_SIZE = "5GB"


def export_policy(
    ckpt: Path,
    out: Path,
    policy: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    form: Literal["merged", "adapter"] = "merged",
) -> Path:
    """Writes the policy of a checkpoint as a folder that `AutoModelForCausalLM`, `AutoTokenizer` and vLLM load.

    Weights go as safetensors, tied ones once; config, tokenizer, chat template and generation config are those of the
    policy that the run began with. Weights of a single file are not copied in memory unless `dtype` asks for it; those
    of a sharded checkpoint, or of a policy that an adapter is merged into, are held once.

    Args:
        ckpt: checkpoint of a run, a file or a sharded folder.
        out: folder to write; must be empty or missing, and appears only once it is whole.
        policy: Hugging Face model folder or name with the architecture, the tokenizer and, if the checkpoint has an
            adapter alone, the weights beside it; none takes ``model.policy`` from the config that the run saved.
        dtype: of the weights; none keeps that of the checkpoint.
        form: of a run with ``model.lora``: its adapter merged into the policy, or `adapter`, a folder of peft with the
            adapter alone; either takes the adapter's options from the config that the run saved.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if there is no checkpoint, no config of the run, or no policy where it says.
        ValueError: if `out` is not empty, if the checkpoint is not one of a run or does not fit the policy or the
            config, or if an adapter is asked for and there is none.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"out must be empty or missing, got {str(out)!r}")
    weights = open_weights(ckpt)
    if form == "adapter" and not holds_adapter(weights):
        raise ValueError(f"form must be merged for a checkpoint without an adapter, got adapter for {ckpt}")
    base = policy or policy_of_run(ckpt)
    check_policy_folder(base)
    tokenizer = load_tokenizer(base)
    adapted = AdaptedPolicy.of(weights, base, adapted_run(ckpt)) if holds_adapter(weights) else None
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if adapted is None:
        write_policy(whole_policy(weights, base, dtype), base, partial)
    elif form == "merged":
        write_policy(adapted.merged(dtype), base, partial)
    else:
        adapted.save(partial, dtype)
    tokenizer.save_pretrained(partial)
    os.replace(partial, out)
    return out


def write_policy(state: dict[str, Tensor], policy: str, folder: Path) -> None:
    """Writes weights with the config and the generation config of a policy.

    Args:
        state: all weights by name, tied ones as one tensor.
        policy: Hugging Face model folder or name.
        folder: to write.
    """
    model = empty_policy(policy, main_dtype(state.values()))
    model.generation_config = load_generation_config(policy, model.config)
    write_model(model, folder, state, _MAX_FILE_SIZE)
