"""What the configuration of a policy says of its attention, and the model that it describes, without weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


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


def num_kv_heads(config: PreTrainedConfig) -> int:
    """Counts the heads of keys and values in a layer of the decoder, fewer than those of queries that share them."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)


def head_size(config: PreTrainedConfig) -> int:
    """Measures the width of one attention head of the decoder."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
