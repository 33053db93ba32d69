"""The command ``appo export``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal


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
            adapter alone, the weights beside it. `null`: ``model.policy`` of the config that the run saved.
        dtype: of the weights. `null`: that of the checkpoint.
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
    # Large, and not needed to say that a path is wrong.
    from appo.commands.export.writing import write_export

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_export(ckpt, partial, policy, dtype, form)
    os.replace(partial, out)
    return out
