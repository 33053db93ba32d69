"""Bytes of a training step and of a key-value cache, from the widths of a model.

Formulas are written per token in the names of `PolicySize`; ``f`` is 4, the bytes of a float32. What autograd saves was
read off the models of transformers (RMSNorm in float32, SwiGLU, `sdpa` or FlashAttention), the way that
"Reducing Activation Recomputation in Large Transformer Models" (https://arxiv.org/abs/2205.05198) does for GPT.
"""

from __future__ import annotations

import torch

from appo.commands.plan.settings import Precision, RunSettings
from appo.commands.plan.size import PolicySize
from appo.functional import chunk_bytes

_FLOAT = 4
_TOKEN_ID = 8
_ADAPTED = 7
"""Matrices of a layer that have an adapter beside them, at most."""


def layer_activations(size: PolicySize, precision: Precision, tensor_parallel: int = 1) -> int:
    """Counts the bytes a token that one decoder layer saves for its backward pass.

    Two norms save their input in float32, the normed input and its scale: ``2 * (f + residual) * hidden + 2 * f``.
    Products save their inputs: what the norms return (``products = 2``, but under autocast each of 3 + 2 products casts
    it anew, ``products = 5``), the attention's output, and the MLP's inner product. The attention saves queries, keys,
    values and a normalizer a head, the gate its input, its value and its factor. Keys and values are those of groups of
    heads, ``shared = kv``, but in float32 of every head, ``shared = attention``. So on top come::

        compute * products * hidden
        + (compute * (2 * attention + 2 * shared + 4 * mlp) + f * num_heads) / tensor_parallel

    Beside an adapter, a norm does not save the normed input, since its weight is frozen. The adapter itself adds its
    inner products, ``7 * f * rank``. Its matrices stay in float32: in another precision each of the seven saves a copy
    of its input, in the place of what the frozen matrix would save.

    Left out is a second copy of the attention's output, which `sdpa` makes where sequences are packed.

    Args:
        size: of the model.
        precision: of the step.
        tensor_parallel: processes that share every layer.
    """
    products = precision.compute * (5 if precision.is_autocast else 2) * size.hidden_size
    shared = size.attention_size if precision.compute == _FLOAT else size.kv_size
    inside = precision.compute * (2 * size.attention_size + 2 * shared + 4 * size.mlp_size) + _FLOAT * size.num_heads
    if size.adapter_rank:
        inside += _ADAPTED * _FLOAT * size.adapter_rank
        if precision.compute < _FLOAT and not precision.is_autocast:
            products = _FLOAT * (5 * size.hidden_size + size.attention_size + size.mlp_size)
            inside -= precision.compute * size.mlp_size
    return 2 * _norm_activations(size, precision) + products + inside // tensor_parallel


def _norm_activations(size: PolicySize, precision: Precision) -> int:
    normed = 0 if size.adapter_rank else precision.residual
    return (_FLOAT + normed) * size.hidden_size + _FLOAT


def step_activations(size: PolicySize, precision: Precision, checkpointing: bool, tensor_parallel: int = 1) -> int:
    """Counts the bytes a token that a forward pass up to the last hidden state leaves for the backward pass.

    Its id, what the last norm saves, and of every layer `layer_activations`, or with checkpointing its input alone.

    Args:
        size: of the model.
        precision: of the step.
        checkpointing: whether layers are computed again in the backward pass.
        tensor_parallel: processes that share every layer.
    """
    kept = precision.residual * size.hidden_size
    layer = kept if checkpointing else layer_activations(size, precision, tensor_parallel)
    return _TOKEN_ID + _norm_activations(size, precision) + size.num_layers * layer


def layer_workspace(size: PolicySize, precision: Precision, tensor_parallel: int = 1) -> int:
    """Counts the bytes a token of the gradients inside a layer.

    ``compute * 3 * mlp / tensor_parallel + 2 * residual * hidden``

    The MLP's backward pass holds the gradient of the inner product and of its two factors at once, beside those of the
    layer's output and of the residual stream.
    """
    return 3 * precision.compute * size.mlp_size // tensor_parallel + 2 * precision.residual * size.hidden_size


def weight_casts(size: PolicySize, precision: Precision, tensor_parallel: int = 1) -> int:
    """Counts the bytes of the copies that autocast makes of all matrices and keeps to the end of a step."""
    if not precision.is_autocast:
        return 0
    layers = size.num_layers * size.linear_layer_weights // tensor_parallel
    return precision.compute * (layers + size.lm_head_weights)


def log_prob_buffers(size: PolicySize, num_tokens: int, device: str) -> int:
    """Counts the bytes of logits while log-probs of tokens are computed, and of the gradient of the LM head.

    A chunk is two such tensors, of which a third of its size is kept for the backward pass; the gradient is summed over
    chunks in float32: ``1.5 * chunk + f * vocab * hidden``, the latter where the head is trained.

    Args:
        size: of the model.
        num_tokens: scored tokens of a micro-batch.
        device: type of the device, such as `cuda`.
    """
    chunk = chunk_bytes(num_tokens, size.vocab_size, torch.float32, device)
    return chunk * 3 // 2 + (0 if size.adapter_rank else _FLOAT * size.lm_head_weights)


def cache_bytes(size: PolicySize, num_bytes: int, tensor_parallel: int = 1) -> int:
    """Counts the bytes a token of the key-value cache: ``2 * num_layers * num_kv_heads * head_size * num_bytes``.

    A process of a tensor-parallel group holds some of the heads, at least one.

    See "Efficient Memory Management for Large Language Model Serving with PagedAttention"
    (https://arxiv.org/abs/2309.06180), section 3.

    Args:
        size: of the model.
        num_bytes: of one number in the cache.
        tensor_parallel: processes that share every layer.
    """
    heads = -(-size.num_kv_heads // tensor_parallel)
    return 2 * size.num_layers * heads * size.head_size * num_bytes


def step_workspace(size: PolicySize, run: RunSettings) -> int:
    """Counts the bytes that the worst moment of a micro-batch takes beside what it saves.

    That is the LM head (`log_prob_buffers`), or the backward pass of the last layer: `layer_workspace`, the gradient of
    one matrix before it is added to that of earlier micro-batches, and with checkpointing `layer_activations` of that
    layer.
    """
    precision = run.precision
    head = log_prob_buffers(size, run.step_scored, run.device)
    if run.strategy == "fsdp" and precision.residual == _FLOAT and not size.adapter_rank:
        # The gradient of an unsharded head counts for itself: it is summed up where it stays. In low precision, it is
        # summed up in float32 beside it and cast afterwards.
        head -= size.lm_head_weights * _FLOAT
    layer = layer_workspace(size, precision, run.tensor_parallel) * run.step_tokens
    if not size.adapter_rank:
        layer += size.hidden_size * size.mlp_size * precision.weight // run.tensor_parallel
    if run.checkpointing:
        layer += layer_activations(size, precision, run.tensor_parallel) * run.step_tokens
    return max(head, layer)
