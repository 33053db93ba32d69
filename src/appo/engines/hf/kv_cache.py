"""A key-value cache of rows that come and go: each row has a slot, the rows in use stand first."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from appo.policy.attention import without_cudnn

_LENGTH_STEP = 64
"""Slots grow by multiples of this many tokens."""


class KVCache(Cache):
    """Keys and values of all layers in one tensor, written at each row's own position.

    A forward pass works on the rows and the length that `focus` named: what it reads is a view, so neither joining nor
    leaving rows copies the others. Positions that a row has not written yet hold numbers of no meaning; the attention
    mask must rule them out.

    Args:
        shape: layers, heads and head size.
        dtype: of keys and values.
        device: of keys and values.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        layers, heads, size = shape
        self.states = torch.zeros(layers, 2, 0, heads, 0, size, dtype=dtype, device=device)
        """``[layers, 2, slots, heads, T, head size]``, keys then values; the ends of smaller ones are not used."""
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
        return self._exchange(keys, key_states), self._exchange(values, value_states)

    def _exchange(self, kept: Tensor, new: Tensor) -> Tensor:
        kept = kept[:, : new.shape[1], :, : new.shape[3]]
        kept[self._row_numbers, :, self._positions] = new.transpose(1, 2)
        return kept[self._rows, :, : self._length]

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


@torch.no_grad()
@without_cudnn()
def cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Measures what a model keeps of a token: layers, and the most heads and the largest head size of one of them.

    Configs have many names for these, and some keep keys of another size than values.
    """
    cache = DynamicCache(config=model.config)
    model.base_model(
        input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True
    )
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    kept = [states for layer in layers for states in (layer.keys, layer.values) if states is not None]
    return len(cache.layers), max(states.shape[1] for states in kept), max(states.shape[3] for states in kept)
