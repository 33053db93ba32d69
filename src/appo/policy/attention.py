"""How packed sequences attend by `sdpa`, and which of a GPU's kernels may run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from appo.policy.tree_attention import TreeLayout, tree_sdpa

PACKED_SDPA = "packed_sdpa"
"""What transformers calls the attention below."""


@dataclass
class _CuDNN:
    """Torch has one switch for all threads: who leaves first must not turn it on for the others, nor off for good."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    num_users: int = 0
    was_enabled: bool = True


_cudnn = _CuDNN()


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Leaves out cuDNN's attention, which torch prefers on some GPUs and prepares anew for every new shape.

    That takes up to a second, for keys of every length that a sequence has or grows to; FlashAttention's kernel takes
    any length at about the same speed.
    """
    with _cudnn.lock:
        if _cudnn.num_users == 0:
            _cudnn.was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _cudnn.num_users += 1
    try:
        yield
    finally:
        with _cudnn.lock:
            _cudnn.num_users -= 1
            if _cudnn.num_users == 0:
                torch.backends.cuda.enable_cudnn_sdp(_cudnn.was_enabled)


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
    prefix_tree: TreeLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends causally within each of some packed sequences, or of some rows that are packed as a tree.

    An attention function of transformers: without `cu_seq_lens_q` and `prefix_tree` it is their `sdpa`. Groups of heads
    that share keys and values have a copy each in a tree, and if the precision is float32: of the kernels of a GPU, the
    one that computes shared ones in float32 holds the scores of all pairs of tokens.

    Args:
        module: the attention layer.
        query: ``[1, heads, T, head size]``, all sequences one behind the other.
        key: ``[1, heads or groups of them, T, head size]``, likewise.
        value: likewise.
        attention_mask: read only without `cu_seq_lens_q`.
        cu_seq_lens_q: ``[sequences + 1]`` where each begins, and the end of the last; on the CPU.
        sliding_window: how many positions back a position may look, itself included; None looks at all.
        prefix_tree: of rows that share tokens.
        **kwargs: for the `sdpa` of transformers.

    Returns:
        ``[1, T, heads, head size]``, and no weights.
    """
    layer: Any = module
    num_shared = getattr(module, "num_key_value_groups", 1)
    is_single = query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type)
    if num_shared > 1 and (is_single or prefix_tree is not None):
        key, value = repeat_kv(key, num_shared), repeat_kv(value, num_shared)
        layer = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    if prefix_tree is not None:
        scale, dropout = kwargs.get("scaling"), kwargs.get("dropout", 0.0)
        output = tree_sdpa(query, key, value, prefix_tree, sliding_window, scale, dropout)
        return output.transpose(1, 2).contiguous(), None
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


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
