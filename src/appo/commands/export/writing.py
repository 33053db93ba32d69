"""Writes the policy of a checkpoint, merged or as an adapter, with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from appo.commands.export.adapted import AdaptedPolicy, holds_adapter
from appo.commands.export.run_config import adapted_run, policy_of_run
from appo.commands.export.weights import empty_policy, full_policy, main_dtype
from appo.distributed.checkpoint import open_weights
from appo.engines.hf.stopping import load_generation_config
from appo.policy.loading import check_policy_folder, load_tokenizer
from appo.policy.saving import end_turns, write_model

_MAX_FILE_SIZE = "5GB"


def write_export(
    ckpt: Path,
    folder: Path,
    policy: str | None,
    dtype: str | None,
    form: Literal["merged", "adapter"],
) -> None:
    """Writes a folder once everything that can be refused has been; see `export_policy` for what it is given."""
    weights = open_weights(ckpt)
    if form == "adapter" and not holds_adapter(weights):
        raise ValueError(f"form must be merged for a checkpoint without an adapter, got adapter for {ckpt}")
    base = policy or policy_of_run(ckpt)
    check_policy_folder(base)
    tokenizer = load_tokenizer(base)
    adapted = AdaptedPolicy.of(weights, base, adapted_run(ckpt)) if holds_adapter(weights) else None
    if adapted is None:
        _write_policy(full_policy(weights, base, dtype), base, tokenizer, folder)
    elif form == "merged":
        _write_policy(adapted.merged(dtype), base, tokenizer, folder)
    else:
        adapted.save(folder, dtype)
    tokenizer.save_pretrained(folder)


def _write_policy(state: dict[str, Tensor], policy: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes all weights by name, tied ones as one tensor, with the config and generation config of a policy."""
    model = empty_policy(policy, main_dtype(state.values()))
    model.generation_config = load_generation_config(policy, model.config)
    end_turns(model, tokenizer)
    write_model(model, folder, state, _MAX_FILE_SIZE)
