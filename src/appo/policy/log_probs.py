"""The policy: a causal language model of transformers, its tokenizer, and the log-probs of what it sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from appo.distributed import comm
from appo.distributed.broadcast import Blueprint
from appo.distributed.fsdp import (
    Layout,
    Sharding,
    check_replicas,
    is_sharded,
)
from appo.distributed.gather import gathered, whole, whole_state
from appo.distributed.tensor_parallel import RowSplit
from appo.functional import predicting_positions, scatter_scored, token_log_probs
from appo.policy.output_head import LinearHead, find_linear_head
from appo.policy.packing import RowForward

log = logging.getLogger(__name__)

_FORWARD = "evaluate_rows"
"""A method of a sharded policy that gathers weights as its `forward` does."""


def check_policy_folder(policy: str) -> None:
    """Refuses a path that is no model folder; what reads as a hub's ``owner/name`` passes.

    Raises:
        FileNotFoundError: if `policy` looks like a path and has no ``config.json``.
    """
    path = Path(policy).expanduser()
    looks_like_path = path.is_absolute() or policy.startswith((".", "~")) or policy.count("/") != 1 or path.is_dir()
    if looks_like_path and not (path / "config.json").is_file():
        raise FileNotFoundError(f"model.policy must be a Hugging Face model folder with a config.json, got {policy!r}")


def load_tokenizer(policy: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy.

    Args:
        policy: Hugging Face model folder or name.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: if the tokenizer has no chat template.
    """
    check_policy_folder(policy)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(policy)
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of model.policy must have a chat template, got none in {policy!r}")
    return tokenizer


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text of token ids."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text that stands in the middle of a sequence."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def max_positions(policy: str) -> int | None:
    """Longest sequence that the policy was made for, in tokens; None if its configuration does not say."""
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
    """A causal language model, ready to train.

    Args:
        policy: Hugging Face model folder or name.
        dtype: of the parameters: `float32`, `bfloat16`, or `auto` for that of the checkpoint.
        gradient_checkpointing: recomputes activations in the backward pass.
        attention: implementation of transformers, such as `sdpa` or `flash_attention_2`; None takes its choice.
        quantization: of the linear layers but the head, on the present GPU; None leaves them in `dtype`.

    Raises:
        FileNotFoundError: if the folder is missing.
    """
    check_policy_folder(policy)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        policy, dtype=dtype, attn_implementation=attention, quantization_config=quantization
    )
    if gradient_checkpointing:
        _checkpoint_gradients(model)
    return model


def load_sharded_policy(
    load: Callable[[], PreTrainedModel],
    sharding: Sharding,
    layout: Layout,
    gradient_checkpointing: bool = False,
    extend: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:
    """A policy of which each process holds a shard, and which the first one alone has read.

    The first process has the whole of it in the memory of the CPU while it starts; the others never have more of it
    than one parameter beside their shard.

    Args:
        load: reads the whole policy; called on the first process.
        sharding: how it is spread.
        layout: of the processes; all of them call this.
        gradient_checkpointing: recomputes activations in the backward pass.
        extend: adds parameters, such as those of an adapter; called on what `load` returns, and on the model that
            becomes the policy, last.
    """
    extend = extend or (lambda model: None)
    mesh = layout.everyone
    source = load() if mesh.get_local_rank() == 0 else None
    if source is not None:
        extend(source)
    blueprint = Blueprint.shared(source, mesh)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(blueprint.config)
    model.tie_weights()
    if blueprint.generation_config is not None:
        model.generation_config = blueprint.generation_config
    extend(model)
    blueprint.set_dtypes(model)
    if gradient_checkpointing:
        _checkpoint_gradients(model)
    sharding(model, layout)
    blueprint.fill(model, source, mesh, "cpu" if sharding.cpu_offload else mesh.device_type)
    network: nn.Module = model
    network.eval()
    check_replicas(model, layout)
    return model


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, one at a time, tied ones under each of their names.

    Sharded ones are gathered when they are asked for: all processes read on to the end.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, whole(parameter.detach())


class PolicyLogProbs:
    """Log-probs and entropies of sampled tokens under a causal language model.

    Only hidden states that predict a scored token go through the output head, a chunk at a time: prompts, tool output
    and padding cost no row of vocabulary size, and most rows are not kept for the backward pass. A model whose head is
    not one linear layer takes the plain path through all logits.

    Args:
        model: the policy or the reference; its attention may be exchanged for one that does not see other rows.
        temperature: divides the logits, as it did in sampling.
        tensor: processes that compute decoder layers together; each puts some of the rows through the output head.
    """

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0, tensor: DeviceMesh | None = None) -> None:
        self.model = model
        self.temperature = temperature
        self.tensor = tensor
        if is_sharded(model):
            # Layers are called one by one, and the head is read: they need the weights that `forward` would gather.
            setattr(model, _FORWARD, self._evaluate)
            register_fsdp_forward_method(model, _FORWARD)

    @cached_property
    def _head(self) -> LinearHead | None:
        # Found on first use: an attention that only runs on a GPU cannot be probed before the model is there.
        head = find_linear_head(self.model)
        if head is None:
            log.warning(
                "the output head of %s is not one linear layer; log-probs use all logits", type(self.model).__name__
            )
        return head

    @cached_property
    def _rows(self) -> RowForward:
        with gathered(self.model):
            return RowForward(self.model, self.model if self._head is None else self.model.get_decoder())

    def __call__(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the tokens that `mask` selects.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            mask: ``[B, T]`` bool, tokens to score; position 0 has no prediction and must be False.

        Returns:
            ``[B, T]`` log-probs and ``[B, T]`` entropies in nats, float32 at least, both with gradient; 0 elsewhere.
        """
        if not is_sharded(self.model):
            return self._evaluate(token_ids, mask)
        _ = self._rows  # made before the weights are gathered for it
        log_probs, entropies = getattr(self.model, _FORWARD)(token_ids, mask)
        return log_probs, entropies

    def _evaluate(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._rows(token_ids, predicting_positions(mask))
        if self._head is None:
            log_probs, entropies = token_log_probs(outputs, token_ids[mask], self.temperature)
        elif self.tensor is None:
            log_probs, entropies = self._head.log_probs(outputs, token_ids[mask], self.temperature)
        else:
            rows = RowSplit(self.tensor, len(outputs))
            own = self._head.log_probs(rows.part(outputs), rows.part(token_ids[mask]), self.temperature)
            log_probs, entropies = (rows.all(values) for values in own)
        return scatter_scored(log_probs, mask), scatter_scored(entropies, mask)


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    All processes call it if the model is sharded; the first one writes.
    """
    is_first = comm.rank() == 0
    state = whole_state(model, keep=is_first) if is_sharded(model) else None
    if is_first:
        write_model(model, folder, state)
        tokenizer.save_pretrained(folder)


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
