"""The weights of a policy by name, and its Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from appo.distributed import comm
from appo.distributed.fsdp import is_sharded
from appo.distributed.gather import full_state_dict, full_tensor
from appo.policy.loading import check_chat_template
from appo.policy.text import turn_end_id


def named_weights(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter by name, one at a time, tied ones under each of their names.

    Sharded ones are all-gathered when they are asked for: all processes read on to the end.

    Args:
        model: the policy.
        dtype: that the weights are wanted in: matrices in shards that take more bytes are rounded to it before they are
            gathered. None: that of each.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensor = parameter.detach()
        # What has one dimension takes next to nothing, and engines may keep it in float32.
        if dtype is not None and isinstance(tensor, DTensor) and tensor.ndim > 1 and dtype.itemsize < tensor.itemsize:
            tensor = tensor.to(dtype)
        yield name, full_tensor(tensor)


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    All processes call it if the model is sharded; the first one writes.
    """
    is_first = comm.rank() == 0
    state = full_state_dict(model, keep=is_first) if is_sharded(model) else None
    if is_first:
        write_model(model, folder, state)
        tokenizer.save_pretrained(folder)


def end_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets a model's generation config stop where an assistant's message ends in the chat template.

    Who generates from a folder stops at the end tokens of its generation config alone.
    """
    config, end = model.generation_config, turn_end_id(tokenizer)
    known = None if config is None else config.eos_token_id
    ends = known if isinstance(known, list) else [known]
    if config is not None and end is not None and end not in ends:
        model.generation_config = deepcopy(config)
        model.generation_config.eos_token_id = [*(token for token in ends if token is not None), end]


def temporary_folder(owner: object, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Writes a Hugging Face folder that is there as long as an object is.

    Args:
        owner: of the folder.
        model: not sharded.
        tokenizer: of the model.

    Raises:
        ValueError: if they are something else, or the tokenizer has no chat template.
    """
    if not isinstance(model, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            "model.policy must be a folder, a name, or a model and its tokenizer of transformers, got "
            f"({type(model).__name__}, {type(tokenizer).__name__})"
        )
    check_chat_template(tokenizer, type(tokenizer).__name__)
    folder = mkdtemp(prefix="appo-policy-")
    finalize(owner, rmtree, folder, ignore_errors=True)
    write_model(model, Path(folder))
    tokenizer.save_pretrained(folder)
    return folder


def write_model(
    model: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None, max_file_size: str = "50GB"
) -> None:
    """Writes the weights of a model with its config and its generation config, the latter as it is.

    `save_pretrained` refuses generation configs that `from_pretrained` only warns of.

    Args:
        model: not sharded, unless `state` is given.
        folder: made if it is not there.
        state: weights by name to write in place of the model's own.
        max_file_size: of a file of weights, in the words of transformers.
    """
    generation_config = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=state, max_shard_size=max_file_size)
    finally:
        model.generation_config = generation_config
    if generation_config is not None:
        generation_config.to_json_file(folder / "generation_config.json")
