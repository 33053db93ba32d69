"""Attention over a tree of prefixes, in which keys and values that rows share stand once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from appo.core.prefix_tree import PrefixTree, Segment

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Attention = Callable[..., tuple[Tensor, Tensor | None]]

_TAKES_KEY_PLACES: set[Attention] = set()


class TreeLayout:
    """What attention has to know of a tree.

    It is handed to the layers as it is: nothing may move its numbers to another device or compile layers for them.

    Args:
        tree: whose tokens stand in the packed order.
        device: of the tokens.
    """

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        self.segments = tree.segments
        self.longest = max(segment.end for segment in self.segments)
        self.lineages = [tree.lineage(number) for number in range(len(self.segments))]
        self.device = device

    def bounds(self) -> dict[str, Any]:
        """Arguments of FlashAttention: each segment is a sequence whose keys are those of its ancestors and its own."""
        queries = torch.tensor([0, *(len(segment) for segment in self.segments)]).cumsum(0)
        keys = torch.tensor([0, *(segment.end for segment in self.segments)]).cumsum(0)
        return {
            "cu_seq_lens_q": queries.to(self.device, torch.int32),
            "cu_seq_lens_k": keys.to(self.device, torch.int32),
            "max_length_q": max(len(segment) for segment in self.segments),
            "max_length_k": self.longest,
            "key_places": torch.cat([_places(s) for line in self.lineages for s in line]).to(self.device),
        }


def _places(segment: Segment) -> Tensor:
    return torch.arange(segment.first, segment.first + len(segment))


def with_key_places(attention: Attention) -> Attention:
    """FlashAttention that takes keys and values of a packed pass from the places that `TreeLayout.bounds` tells.

    Its causal mask is aligned to the end where a sequence has fewer queries than keys.

    Args:
        attention: transformers' function, or what this has made of it, which is returned.
    """
    if attention in _TAKES_KEY_PLACES:
        return attention

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        key_places: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if key_places is not None:
            key, value = key.index_select(2, key_places), value.index_select(2, key_places)
        return attention(module, query, key, value, *args, **options)

    _TAKES_KEY_PLACES.add(attend)
    return attend


def tree_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attends causally from every segment to its ancestors and itself.

    Args:
        query: ``[1, heads, T, head size]``, in the packed order.
        key: ``[1, heads, T, head size]``, likewise.
        value: likewise.
        layout: of the tree.
        window: how many positions back a position may look, itself included; None looks at all.
        scale: of the scores; None takes the inverse root of the head size.
        dropout: probability of leaving out a weight.

    Returns:
        ``[1, heads, T, head size]``.
    """
    sees_all = window is None or layout.longest <= window
    if query.device.type == "cpu" and sees_all and dropout == 0.0 and query.shape[-1] == value.shape[-1]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        output: Tensor = _TreeAttention.apply(  # type: ignore[no-untyped-call]
            query.to(dtype), key.to(dtype), value.to(dtype), layout.segments, scale
        )
        return output
    outputs = []
    for line in layout.lineages:
        segment = line[-1]
        first = 0 if window is None else max(0, segment.begin + 1 - window)
        keys, values = (torch.cat([x[:, :, s.first : s.first + len(s)] for s in line], 2) for x in (key, value))
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, segment.first : segment.first + len(segment)],
                keys[:, :, first:],
                values[:, :, first:],
                attn_mask=_mask(segment, first, window, query.device),
                dropout_p=dropout,
                scale=scale,
            )
        )
    return torch.cat(outputs, dim=2)


def _mask(segment: Segment, first: int, window: int | None, device: torch.device) -> Tensor:
    """For the queries of a segment and the keys from a position on up to its end."""
    is_whole = window is None or segment.end <= window
    if is_whole and device.type == "cuda":
        # Tells kernels of a GPU what to leave out, and holds no mask.
        return causal_lower_right(len(segment), segment.end)
    ones = torch.ones(len(segment), segment.end - first, dtype=torch.bool, device=device)
    offset = segment.begin - first
    seen = ones.tril(offset)
    return seen if window is None else seen.triu(offset + 1 - window)


class _TreeAttention(torch.autograd.Function):
    """Attention by a CPU's kernel, once for each segment's keys and all queries of its subtree.

    Those stand in one piece, first the segment's own, for which the keys come one by one, then its descendants', which
    see all of them: a causal mask aligned to the begin, and no other mask. What queries get from several segments is
    weighted by the sums of exponentials of their scores, as the softmax over all of them would do. The kernel's
    backward pass recomputes the weights of a part from the whole output and the whole sum, so its gradients are those
    of the part, and add up.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float | None
    ) -> Tensor:
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for segment in segments:
            queries, keys = slice(segment.first, segment.stop), slice(segment.first, segment.first + len(segment))
            part, log_sum = _FORWARD(query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, True, scale=scale)
            if segment.begin == 0:
                output[:, :, queries], log_sums[:, :, queries] = part, log_sum
            else:
                _join_(output[:, :, queries], log_sums[:, :, queries], part, log_sum)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.segments, ctx.scale = segments, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, log_sums = ctx.saved_tensors
        # In float32 at least: for some hundred tokens the kernel's backward pass takes two to ten times as long in
        # half precision, and what queries get from several segments is added up.
        grad, query, key, value, output = (x.to(log_sums.dtype) for x in (grad, *saved))
        by_query, by_key, by_value = (torch.empty_like(x) for x in (query, key, value))
        for segment in ctx.segments:
            queries, keys = slice(segment.first, segment.stop), slice(segment.first, segment.first + len(segment))
            of_queries, by_key[:, :, keys], by_value[:, :, keys] = _BACKWARD(
                *(x[:, :, queries] for x in (grad, query)),
                *(x[:, :, keys] for x in (key, value)),
                *(x[:, :, queries] for x in (output, log_sums)),
                0.0,
                True,
                scale=ctx.scale,
            )
            if segment.begin == 0:
                by_query[:, :, queries] = of_queries
            else:
                by_query[:, :, queries] += of_queries
        return *(x.to(saved[0].dtype) for x in (by_query, by_key, by_value)), None, None


def _join_(output: Tensor, log_sum: Tensor, part: Tensor, log_sum_of_part: Tensor) -> None:
    """Takes one more part into what queries have got so far, in place."""
    joined = torch.logaddexp(log_sum, log_sum_of_part)
    weight = (log_sum_of_part - joined).exp_().unsqueeze(-1)
    output.lerp_(part, weight.to(part.dtype))
    log_sum.copy_(joined)
