"""Sequences of unlike length through a model: packed, what they begin with alike only once, or padded."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from appo.core.prefix_tree import PrefixTree
from appo.distributed.fsdp import is_sharded
from appo.policy.attention import PACKED_SDPA
from appo.policy.precision import float32_products
from appo.policy.tree_attention import TreeLayout, with_key_places

log = logging.getLogger(__name__)

_MAX_PADDING = 0.05
"""Largest share of padding among the positions that a padded forward pass computes."""

_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Relative distance of a packed forward pass from a padded one that rounding may make."""


class SequenceForward:
    """Runs a decoder over sequences of unlike length, and picks what it returns at some positions.

    They are packed without padding if the model attends by FlashAttention, or by `sdpa`, whose attention is then taken
    sequence by sequence; that none sees another is found out by a probe. Otherwise, and a warning says why, neighbors
    are padded to the longest of them, so few at a time that padding stays within 5 %; in order of their length they
    need the fewest passes. Those of a sharded model are padded all at once.

    A model that packs can also share: tokens that rows begin with alike go through it once, if another probe finds that
    this changes nothing.

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
        self.shares = False
        """Whether tokens that rows begin with alike go through the model once."""
        if obstacle:
            log.warning("rows of %s are padded instead of packed, which is slower: %s", type(model).__name__, obstacle)
        elif obstacle := self._attend_to_prefixes(model):
            name = type(model).__name__
            log.warning("rows of %s do not share what they begin with alike, which is slower: %s", name, obstacle)
        else:
            self.shares = True

    def __call__(self, token_ids: Tensor, is_wanted: Tensor) -> Tensor:
        """Computes no position that nothing wanted depends on.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            is_wanted: ``[B, T]`` bool.

        Returns:
            ``[N, ...]`` values of the wanted positions, in row-major order.
        """
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        lengths = _needed_lengths(is_wanted)
        run = self._packed if self.packs else self._padded
        return run(token_ids, positions < lengths.unsqueeze(-1), lengths.tolist(), is_wanted)

    def tree(self, token_ids: Tensor, is_wanted: Tensor) -> PrefixTree | None:
        """What rows share of the positions that something wanted depends on; None if nothing, or if it cannot be.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            is_wanted: ``[B, T]`` bool.
        """
        if not (self.packs and self.shares):
            return None
        tree = PrefixTree.of(token_ids, _needed_lengths(is_wanted))
        return tree if tree.is_shared else None

    def over_tree(self, token_ids: Tensor, tree: PrefixTree) -> Tensor:
        """Computes every distinct token once.

        Args:
            token_ids: ``[B, T]`` int64 that the tree was made of.
            tree: from `tree`.

        Returns:
            ``[N, ...]`` values of the distinct tokens, in the packed order.
        """
        rows, positions = (index.to(token_ids.device) for index in tree.rows_and_positions)
        layout = TreeLayout(tree, token_ids.device)
        outputs = self.module(
            input_ids=token_ids[rows, positions].unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            **(layout.bounds() if self.is_flash else {"prefix_tree": layout, **_no_mask(token_ids.device)}),
        )
        values: Tensor = outputs[0][0]
        return values

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
            return {"cu_seq_lens_q": bounds, **_no_mask(device)}
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
        if model.config._attn_implementation == PACKED_SDPA:
            return ""
        if model.config._attn_implementation != "sdpa":
            return f"it attends by {model.config._attn_implementation}, not by sdpa or FlashAttention"
        token_ids = torch.arange(8, device=_device(model)).view(2, 4)
        is_wanted = token_ids != 7
        with _probing(model):
            padded = self._padded(token_ids, is_wanted, [4, 3], is_wanted)
            model.set_attn_implementation(PACKED_SDPA)
            packed = self._packed(token_ids, is_wanted, [4, 3], is_wanted)
        if not (difference := _difference(packed, padded)):
            return ""
        model.set_attn_implementation("sdpa")
        return f"what it makes of packed rows differs by {difference} of what it makes of padded ones"

    @torch.no_grad()
    def _attend_to_prefixes(self, model: PreTrainedModel) -> str:
        """Lets FlashAttention read keys where they stand once; says what a tree has changed beside the work."""
        if self.is_flash:
            name = model.config._attn_implementation
            AttentionInterface.register(name, with_key_places(ALL_ATTENTION_FUNCTIONS[name]))
        # As long as what is shared at least; the tokens behind the fork are others, in rows of unlike length.
        token_ids = (torch.arange(40, device=_device(model)).view(2, 20) % 20 % 8).contiguous()
        token_ids[1, 16:] += 1
        is_wanted = torch.ones_like(token_ids, dtype=torch.bool)
        is_wanted[1, 18:] = False
        with _probing(model, self.is_flash):
            flat = self._packed(token_ids, is_wanted, [20, 18], is_wanted)
            tree = PrefixTree.of(token_ids, _needed_lengths(is_wanted))
            shared = self.over_tree(token_ids, tree)[tree.places[is_wanted.cpu()].to(token_ids.device)]
        if difference := _difference(shared, flat, self.is_flash):
            return f"what it makes of a tree differs by {difference} of what it makes of its rows"
        return ""


def _needed_lengths(is_wanted: Tensor) -> Tensor:
    """``[B]``, up to the last wanted position of each row."""
    positions = torch.arange(is_wanted.shape[1], device=is_wanted.device)
    return ((positions + 1) * is_wanted).amax(-1)


def _no_mask(device: torch.device) -> dict[str, Tensor]:
    """A mask of four dimensions is passed through as it is, and transformers makes none that covers all tokens."""
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


def _device(model: PreTrainedModel) -> torch.device:
    """Where the weights are when they are used: a shard may lie on the CPU."""
    return next(model.get_input_embeddings().parameters()).device


@contextmanager
def _probing(model: PreTrainedModel, is_flash: bool = False) -> Iterator[None]:
    """Without noise, and with all digits that the parameters have; FlashAttention takes no float32."""
    was_training = model.training
    model.eval()
    is_mixed = is_flash and model.dtype == torch.float32
    with (
        torch.autocast(_device(model).type, torch.bfloat16, enabled=is_mixed),
        torch.compiler.set_stance("force_eager"),
        float32_products("ieee"),
    ):
        yield
    model.train(was_training)


def _difference(ours: Tensor, right: Tensor, is_flash: bool = False) -> str:
    """The relative distance; nothing if rounding may have made it."""
    distance, norm = (ours - right).norm(), right.norm()
    tolerance = _TOLERANCES[torch.bfloat16 if is_flash else right.dtype]
    return "" if distance <= tolerance * norm else f"{float(distance / norm):.2g}"


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
