"""What the configuration of a policy says of its attention, and the model that it describes, without weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

_PLAIN = "eager"
"""Name of transformers for attention that is written out."""

_WITHOUT_CAPS = "sdpa"
"""That which leaves soft caps of scores out, without a word."""

_STATES = frozenset({"conv", "hybrid", "hybrid_sliding", "linear_attention"})
"""Kinds of layers, as transformers names them, that keep something else than keys and values."""


def empty_model(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Builds a causal language model on the meta device: parameters have shapes and no data, and tied ones are one.

    Args:
        config: of the model.
        dtype: of the parameters; None: what the configuration says.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    model.tie_weights()
    return model


def has_state(config: PreTrainedConfig) -> bool:
    """Whether something else than attention carries what one token of a policy knows to the next."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    return bool(getattr(model_class, "_is_stateful", False)) or not _STATES.isdisjoint(kinds)


def longest_sequence(config: PreTrainedConfig, max_length: int) -> int:
    """Tokens that a sequence may have.

    Args:
        config: of the policy.
        max_length: that is asked for; 0 takes all positions of the policy.

    Raises:
        ValueError: if it has fewer, or does not say how many.
    """
    positions: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is None and not max_length:
        raise ValueError(
            f"max_length must be positive for {config.model_type}, whose configuration names no last position, got 0"
        )
    if positions is not None and max_length > positions:
        raise ValueError(f"max_length must not exceed the policy's {positions} positions, got {max_length}")
    return max_length or positions or 0


def num_kv_heads(config: PreTrainedConfig) -> int:
    """Counts the heads of keys and values in a layer of the decoder, fewer than those of queries that share them."""
    text = config.get_text_config(decoder=True)
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    names = ("num_key_value_heads", "num_kv_heads")
    return int(next((number for name in names if (number := getattr(text, name, None))), text.num_attention_heads))


def head_size(config: PreTrainedConfig) -> int:
    """Measures the width of one attention head of the decoder."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def exact_attention(config: PreTrainedConfig) -> str | None:
    """Names the implementation that a policy needs where nothing faster computes the same; None where `sdpa` does.

    `sdpa` knows no soft cap of attention scores, and some models do not support it.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    is_supported = model_class is None or getattr(model_class, "_supports_sdpa", True)
    return None if is_supported and not _caps_scores(config) else _PLAIN


def check_attention(config: PreTrainedConfig, attention: str | None) -> None:
    """Refuses an implementation that computes something else than a policy's config says.

    Raises:
        ValueError: if it would leave soft caps of attention scores out.
    """
    if attention == _WITHOUT_CAPS and _caps_scores(config):
        raise ValueError(
            f"model.attention must be null, {_PLAIN} or flash_attention_2 for {config.model_type}, whose attention "
            f"scores are soft-capped, got {attention}"
        )


def _caps_scores(config: PreTrainedConfig) -> bool:
    return bool(getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None))
