"""A key-value cache of rows that come and go: each row has a slot, the rows in use stand first."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from appo.policy.architecture import head_size, num_kv_heads

_LENGTH_STEP = 64
"""Slots grow by multiples of this many tokens."""


_OTHERS = "rollout.engine=VLLMEngine and VLLMServerEngine serve what vLLM does"


class KVCache(Cache):
    """Keys and values of all layers in one tensor, written at each row's own position.

    A forward pass works on the rows and the length that `focus` named: what it reads is a view, so neither joining nor
    leaving rows copies the others. Positions that a row has not written yet hold numbers of no meaning; the attention
    mask must rule them out.

    Args:
        config: of the policy.
        dtype: of keys and values.
        device: of keys and values.

    Raises:
        ValueError: if a layer of the policy keeps anything but the keys and values of all positions.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        check_full_attention(config)
        text = config.get_text_config(decoder=True)
        shape = text.num_hidden_layers, 2, 0, num_kv_heads(text), 0, head_size(text)
        self.states = torch.zeros(shape, dtype=dtype, device=device)
        """``[layers, 2, slots, heads, T, head size]``, keys then values."""
        self._rows = slice(0, 0)
        self._length = 0
        self._positions = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._row_numbers = torch.zeros(0, 1, dtype=torch.long, device=device)

    def reserve(self, num_rows: int, length: int) -> None:
        """Makes room for the first `num_rows` slots to hold `length` tokens; what is there stays."""
        layers, pair, rows, heads, tokens, size = self.states.shape
        if num_rows <= rows and length <= tokens:
            return
        new_rows = rows if num_rows <= rows else max(num_rows, 2 * rows)
        new_tokens = tokens if length <= tokens else -(-max(length, tokens * 3 // 2) // _LENGTH_STEP) * _LENGTH_STEP
        grown = self.states.new_zeros(layers, pair, new_rows, heads, new_tokens, size)
        grown[:, :, :rows, :, :tokens] = self.states
        self.states = grown

    def focus(self, rows: slice, positions: Tensor, length: int) -> None:
        """Says what the next forward pass is about.

        Args:
            rows: slots it works on.
            positions: ``[B, T]`` int64, where its tokens stand in their rows.
            length: tokens of every slot that it attends to, at most.
        """
        self._rows = rows
        self._positions = positions
        self._length = length
        self._row_numbers = torch.arange(rows.start, rows.stop, device=positions.device)[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values, ``[B, heads, T, head size]`` each, and returns those of the rows in focus."""
        keys, values = self.states[layer_idx]
        keys[self._row_numbers, :, self._positions] = key_states.transpose(1, 2)
        values[self._row_numbers, :, self._positions] = value_states.transpose(1, 2)
        return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copies the first `length` tokens of some slots over others."""
        for source, target in zip(sources, targets, strict=True):
            self.states[:, :, target, :, :length] = self.states[:, :, source, :, :length]

    def read(self, row: int, length: int) -> Tensor:
        """A copy of what a slot holds, ``[layers, 2, heads, length, head size]``."""
        return self.states[:, :, row, :, :length].clone()

    def write(self, row: int, states: Tensor) -> None:
        """Fills a slot from its beginning with what `read` returned."""
        self.states[:, :, row, :, : states.shape[3]] = states


def without_idle_window(config: PreTrainedConfig, max_length: int) -> PreTrainedConfig:
    """The config of a policy whose sliding window no sequence outgrows, with full attention; any other as it is.

    Args:
        config: of the policy; one that gives layers kinds of their own keeps them, since more may hang on a kind.
        max_length: of any sequence, 0 for the positions that the policy has.
    """
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    if window is None or window < (max_length or text.max_position_embeddings) or getattr(text, "layer_types", None):
        return config
    config = deepcopy(config)
    config.get_text_config(decoder=True).sliding_window = None
    return config


def check_served(config: PreTrainedConfig) -> None:
    """Refuses a policy that HFEngine cannot serve, before its weights are loaded.

    Raises:
        ValueError: if its attention cannot be computed by torch's `scaled_dot_product_attention`, or if a layer keeps
            anything but keys and values of all positions.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is not None and not getattr(model_class, "_supports_sdpa", True):
        raise ValueError(
            f"HFEngine serves policies whose attention torch's scaled_dot_product_attention computes, got "
            f"{config.model_type}, whose does not; {_OTHERS}"
        )
    check_full_attention(config)


def check_full_attention(config: PreTrainedConfig) -> None:
    """Refuses policies whose past is more, or less, than the keys and values of all positions."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds != {DynamicLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
        is_window = kinds == {DynamicSlidingWindowLayer}
        hint = (
            f"rollout.engine.max_length={window}, or less, leaves its windows nothing to do, or " if is_window else ""
        )
        raise ValueError(
            f"HFEngine serves policies with full attention in every layer only, got {config.model_type} with {names}; "
            f"{hint}{_OTHERS}"
        )
    if getattr(config.get_text_config(decoder=True), "kv_lora_rank", None):
        raise ValueError(
            f"HFEngine serves policies that keep keys and values of one size only, got {config.model_type} with latent "
            f"attention; {_OTHERS}"
        )
