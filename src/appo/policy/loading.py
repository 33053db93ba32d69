"""Policies and tokenizers from Hugging Face folders, unsharded or as shards of several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from appo.distributed.broadcast import Blueprint
from appo.distributed.fsdp import Meshes, Sharding, check_replicas, decoder_layers
from appo.policy.architecture import check_attention, empty_model, exact_attention

_PROBE = "Is 3 + 4 = 7?\n\nYes."
"""Text with all that a tokenizer of another kind loses: spaces, lines, signs."""


def check_policy_folder(policy: str, option: str = "model.policy") -> None:
    """Refuses what is neither a model folder nor the name of a model on the hub.

    Args:
        policy: Hugging Face model folder or name.
        option: that it was given as.

    Raises:
        FileNotFoundError: if `policy` looks like a path and has no ``config.json``.
        ValueError: if its configuration cannot be read.
    """
    path = Path(policy).expanduser()
    looks_like_path = path.is_absolute() or policy.startswith((".", "~")) or policy.count("/") != 1 or path.is_dir()
    if looks_like_path and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{option} must be a Hugging Face model folder with a config.json, got {policy!r}")
    try:
        AutoConfig.from_pretrained(policy)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is not run; convert it to a class of transformers"
        elif isinstance(error, OSError):
            reason = f"there is no such folder in {Path.cwd()}, and {reason}"
        raise ValueError(f"{option} must be a model that transformers can read, got {policy!r}: {reason}") from error


def load_tokenizer(policy: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a policy.

    Args:
        policy: Hugging Face model folder or name.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: if the tokenizer has no chat template, or loses what its file says to keep.
    """
    check_policy_folder(policy)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(policy)
    check_chat_template(tokenizer, policy)
    _check_reading(tokenizer, policy)
    return tokenizer


def _check_reading(tokenizer: PreTrainedTokenizerBase, policy: str) -> None:
    """Refuses a tokenizer that reads text otherwise than its ``tokenizer.json`` says.

    transformers takes the class that a folder names, and some take no more than the vocabulary from the file: a
    byte-level one in the name of `LlamaTokenizerFast`, as distillations into Llama have it, loses all spaces.
    """
    token_ids = tokenizer.encode(_PROBE, add_special_tokens=False)
    read = tokenizer.decode(token_ids)
    if read == _PROBE:
        return
    file = cached_file(policy, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if file and Tokenizer.from_file(file).encode(_PROBE, add_special_tokens=False).ids != token_ids:
        raise ValueError(
            f"the tokenizer of model.policy must read text as its tokenizer.json says, got {type(tokenizer).__name__} "
            f"in {policy!r}, to which {_PROBE!r} is {read!r}; set tokenizer_class in tokenizer_config.json to "
            "PreTrainedTokenizerFast"
        )


def check_chat_template(tokenizer: PreTrainedTokenizerBase, policy: str) -> None:
    """Refuses a tokenizer that cannot write a conversation.

    Raises:
        ValueError: if it has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of model.policy must have a chat template, got none in {policy!r}")


def max_positions(policy: str) -> int | None:
    """Reads the longest sequence that the policy was made for, in tokens; None if its configuration does not say."""
    check_policy_folder(policy)
    limit = getattr(AutoConfig.from_pretrained(policy), "max_position_embeddings", None)
    return int(limit) if limit is not None else None


def load_policy(
    policy: str,
    dtype: str = "float32",
    gradient_checkpointing: bool = False,
    attention: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Loads a causal language model, ready to train.

    Args:
        policy: Hugging Face model folder or name.
        dtype: of the parameters: `float32`, `bfloat16`, or `auto` for that of the checkpoint.
        gradient_checkpointing: recomputes activations in the backward pass.
        attention: implementation of transformers, such as `sdpa` or `flash_attention_2`. None: its choice.
        quantization: of the linear layers but the LM head, on the present GPU. None: they stay in `dtype`.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: if `attention` computes something else than the policy's configuration says.
    """
    check_policy_folder(policy)
    config = AutoConfig.from_pretrained(policy)
    check_attention(config, attention)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        policy,
        dtype=dtype,
        attn_implementation=attention or exact_attention(config),
        quantization_config=quantization,
    )
    if gradient_checkpointing:
        _checkpoint_gradients(model)
    return model


def load_sharded_policy(
    load: Callable[[], PreTrainedModel],
    sharding: Sharding,
    meshes: Meshes,
    gradient_checkpointing: bool = False,
    extend: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:
    """Loads a policy of which each process holds a shard, and which the first one alone reads.

    The first process has all of it in the memory of the CPU while it starts; the others never have more of it
    than one parameter beside their shard.

    Args:
        load: reads the policy without shards; called on the first process.
        sharding: how it is spread.
        meshes: of the processes; all of them call this.
        gradient_checkpointing: recomputes activations in the backward pass.
        extend: adds parameters, such as those of an adapter; called on what `load` returns, and on the model that
            becomes the policy, last.
    """
    extend = extend or (lambda model: None)
    mesh = meshes.world
    source = load() if mesh.get_local_rank() == 0 else None
    if source is not None:
        extend(source)
    blueprint = Blueprint.shared(source, mesh)
    model = empty_model(blueprint.config)
    if blueprint.generation_config is not None:
        model.generation_config = blueprint.generation_config
    extend(model)
    blueprint.set_dtypes(model)
    if gradient_checkpointing:
        _checkpoint_gradients(model)
    sharding(model, meshes)
    blueprint.fill(model, source, mesh, "cpu" if sharding.cpu_offload else mesh.device_type)
    network: nn.Module = model
    network.eval()
    check_replicas(model, meshes)
    return model


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles decoder layers one by one, for sequences of all lengths.

    Layers that are alike share what is compiled, where that of a whole decoder grows with their number.

    Args:
        model: any causal language model of transformers.

    Raises:
        ValueError: if it has no list of decoder layers.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
