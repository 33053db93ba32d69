"""Sequences of unlike length through a model, packed one behind the other, or padded where the model forbids that."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from appo.distributed.fsdp import is_sharded
from appo.policy.attention import without_cudnn
from appo.policy.precision import float32_products

log = logging.getLogger(__name__)

_PACKED_SDPA = "packed_sdpa"

_MAX_PADDING = 0.05
"""Largest share of padding among the positions that a padded forward pass computes."""

_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Relative distance of a packed forward pass from a padded one that rounding may make."""


# It would be compiled anew for every number of sequences.
@torch.compiler.disable  # type: ignore[untyped-decorator]
@without_cudnn()
def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends causally within each of some packed sequences; an attention function of transformers.

    Without `cu_seq_lens_q` it is the `sdpa` of transformers. Groups of heads that share keys and values have a copy
    each if the precision is float32: of the kernels of a GPU, the one that computes shared ones in float32 holds the
    scores of all pairs of tokens.

    Args:
        module: the attention layer.
        query: ``[1, heads, T, head size]``, all sequences one behind the other.
        key: ``[1, heads or groups of them, T, head size]``, likewise.
        value: likewise.
        attention_mask: read only without `cu_seq_lens_q`.
        cu_seq_lens_q: ``[sequences + 1]`` where each begins, and the end of the last; on the CPU.
        sliding_window: how many positions back a position may look, itself included; None looks at all.
        **kwargs: for the `sdpa` of transformers.

    Returns:
        ``[1, T, heads, head size]``, and no weights.
    """
    layer: Any = module
    num_shared = getattr(module, "num_key_value_groups", 1)
    if num_shared > 1 and query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type):
        key, value = repeat_kv(key, num_shared), repeat_kv(value, num_shared)
        layer = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(layer, query, key, value, attention_mask, **kwargs)
    lengths = cu_seq_lens_q.diff().tolist()
    sequences = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(layer, q, k, v, _window_mask(length, sliding_window, query.device), **kwargs)[0]
        for (q, k, v), length in zip(sequences, lengths, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril().triu(1 - window)


AttentionInterface.register(_PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(_PACKED_SDPA, sdpa_mask)


class SequenceForward:
    """Runs a decoder over sequences of unlike length, and picks what it returns at some positions.

    They are packed without padding if the model attends by FlashAttention, or by `sdpa`, whose attention is then taken
    sequence by sequence; that none sees another is found out by a probe. Otherwise, and a warning says why, neighbors
    are padded to the longest of them, so few at a time that padding stays within 5 %; in order of their length they
    need the fewest passes. Those of a sharded model are padded all at once.

    Args:
        model: the causal language model.
        module: its decoder, or itself; what it returns first is picked from.
    """

    def __init__(self, model: PreTrainedModel, module: nn.Module) -> None:
        self.module = module
        # Layers of a sharded model are unsharded in every pass, and processes must make the same number of them.
        self.max_padding = 1.0 if is_sharded(model) else _MAX_PADDING
        self.is_flash = "flash" in str(model.config._attn_implementation)
        obstacle = _obstacle(model, module) or ("" if self.is_flash else self._attend_packed(model))
        self.packs = not obstacle
        if obstacle:
            log.warning("rows of %s are padded instead of packed, which is slower: %s", type(model).__name__, obstacle)

    def __call__(self, token_ids: Tensor, is_wanted: Tensor) -> Tensor:
        """Computes no position that nothing wanted depends on.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            is_wanted: ``[B, T]`` bool.

        Returns:
            ``[N, ...]`` values of the wanted positions, in row-major order.
        """
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        lengths = ((positions + 1) * is_wanted).amax(-1)
        run = self._packed if self.packs else self._padded
        return run(token_ids, positions < lengths.unsqueeze(-1), lengths.tolist(), is_wanted)

    def _packed(self, token_ids: Tensor, is_needed: Tensor, lengths: Sequence[int], is_wanted: Tensor) -> Tensor:
        positions = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        outputs = self.module(
            input_ids=token_ids[is_needed].unsqueeze(0),
            position_ids=positions[is_needed].unsqueeze(0),
            use_cache=False,
            **self._bounds([length for length in lengths if length > 0], token_ids.device),
        )
        picked: Tensor = outputs[0][0, is_wanted[is_needed]]
        return picked

    def _bounds(self, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
        """Tells the attention where sequences begin."""
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        if not self.is_flash:
            # A mask of four dimensions is passed through as it is, and transformers makes none that covers all of them.
            return {"cu_seq_lens_q": bounds, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}
        bounds, longest = bounds.to(device), max(lengths)
        return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}

    def _padded(self, token_ids: Tensor, is_needed: Tensor, lengths: Sequence[int], is_wanted: Tensor) -> Tensor:
        parts = []
        for span in padded_spans(lengths, self.max_padding):
            width = max(lengths[span])
            outputs = self.module(
                input_ids=token_ids[span, :width], attention_mask=is_needed[span, :width].long(), use_cache=False
            )
            parts.append(outputs[0][is_wanted[span, :width]])
        return torch.cat(parts)

    @torch.no_grad()
    def _attend_packed(self, model: PreTrainedModel) -> str:
        """Switches the model to `packed_sdpa` if that changes nothing but the padding; says what else has changed."""
        if model.config._attn_implementation == _PACKED_SDPA:
            return ""
        if model.config._attn_implementation != "sdpa":
            return f"it attends by {model.config._attn_implementation}, not by sdpa or FlashAttention"
        was_training = model.training
        model.eval()
        # Where the weights are when they are used: a shard may lie on the CPU.
        device = next(model.get_input_embeddings().parameters()).device
        token_ids = torch.arange(8, device=device).view(2, 4)
        is_wanted = token_ids != 7
        with (
            torch.autocast(device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),
            float32_products("ieee"),
        ):
            padded = self._padded(token_ids, is_wanted, [4, 3], is_wanted)
            model.set_attn_implementation(_PACKED_SDPA)
            packed = self._packed(token_ids, is_wanted, [4, 3], is_wanted)
        distance, norm = (packed - padded).norm(), padded.norm()
        model.train(was_training)
        if distance <= _TOLERANCES[padded.dtype] * norm:
            return ""
        model.set_attn_implementation("sdpa")
        return f"what it makes of packed rows differs by {float(distance / norm):.2g} of what it makes of padded ones"


def padded_spans(lengths: Sequence[int], max_padding: float) -> Iterator[slice]:
    """Cuts neighbors into spans that are padded together; sequences of length 0 are left out.

    Args:
        lengths: of the sequences.
        max_padding: largest share of padding in a span.
    """
    start = total = longest = 0
    for number, length in enumerate([*lengths, 0]):
        widest = max(longest, length)
        if length == 0 or widest * (number + 1 - start) * (1.0 - max_padding) > total + length:
            if number > start:
                yield slice(start, number)
            start, total, longest = (number, length, length) if length else (number + 1, 0, 0)
        else:
            total, longest = total + length, widest


def _obstacle(model: PreTrainedModel, module: nn.Module) -> str:
    """Says what else than attention carries what one token knows to the next, or that its arguments do not arrive."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if model._is_stateful:
        return "it carries a state from token to token"
    if others := set(layers) - {"full_attention", "sliding_attention"}:
        return f"some of its layers are {', '.join(sorted(others))}"
    takes_anything = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())
    return "" if takes_anything else "it cannot be told where rows begin"
