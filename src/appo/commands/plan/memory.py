"""Bytes of a training step and of a key-value cache, from the widths of a model.

Formulas are written per token in the names of `PolicySize`; ``f`` is 4, the bytes of a float32. What autograd saves was
read off the models of transformers (RMSNorm in float32, SwiGLU, `sdpa` or FlashAttention), the way that
"Reducing Activation Recomputation in Large Transformer Models" (https://arxiv.org/abs/2205.05198) does for GPT.
"""

from __future__ import annotations

from dataclasses import dataclass

from appo.commands.plan.size import PolicySize

_FLOAT = 4
_TOKEN_ID = 8

_UNCHUNKED_BUFFERS = 4
_CHUNK_BUFFERS = 2


@dataclass(frozen=True)
class Precision:
    """Bytes of the numbers in a training step.

    Attributes:
        weight: of parameters, gradients and optimizer state, 2 or 4.
        compute: of what goes into a matrix product, 2 or 4.
        residual: of what layers hand on to one another, and of weights that are gathered from shards, 2 or 4.
    """

    weight: int = 4
    compute: int = 4
    residual: int = 4

    @property
    def is_autocast(self) -> bool:
        """Whether weights and inputs are cast at every product, and the residual stream is not."""
        return self.residual > self.compute


def layer_activations(size: PolicySize, precision: Precision, tensor_parallel: int = 1) -> int:
    """Bytes a token that one decoder layer saves for its backward pass.

    Two norms save their input in float32, the normed input and its scale: ``2 * (f + residual) * hidden + 2 * f``.
    Products save their inputs: what the norms return (``products = 2``, but under autocast each of 3 + 2 products casts
    it anew, ``products = 5``), the attention's output, and the MLP's inner product. The attention saves queries, keys,
    values and a normalizer a head, the gate its input, its value and its factor. Keys and values are those of groups of
    heads, ``shared = kv``, but in float32 of every head, ``shared = attention``. So on top come::

        compute * products * hidden
        + (compute * (2 * attention + 2 * shared + 4 * mlp) + f * num_heads) / tensor_parallel

    Left out is a second copy of the attention's output, which `sdpa` makes where rows are packed.

    Args:
        size: of the model.
        precision: of the step.
        tensor_parallel: processes that share every layer.
    """
    norms = 2 * (_FLOAT + precision.residual) * size.hidden_size + 2 * _FLOAT
    products = 5 if precision.is_autocast else 2
    shared = size.attention_size if precision.compute == _FLOAT else size.kv_size
    inside = precision.compute * (2 * size.attention_size + 2 * shared + 4 * size.mlp_size) + _FLOAT * size.num_heads
    return norms + precision.compute * products * size.hidden_size + inside // tensor_parallel


def step_activations(size: PolicySize, precision: Precision, checkpointing: bool, tensor_parallel: int = 1) -> int:
    """Bytes a token that a forward pass up to the last hidden state leaves for the backward pass.

    Its id, what the last norm saves, and of every layer `layer_activations`, or with checkpointing its input alone.

    Args:
        size: of the model.
        precision: of the step.
        checkpointing: whether layers are computed again in the backward pass.
        tensor_parallel: processes that share every layer.
    """
    last_norm = (_FLOAT + precision.residual) * size.hidden_size + _FLOAT
    kept = precision.residual * size.hidden_size
    layer = kept if checkpointing else layer_activations(size, precision, tensor_parallel)
    return _TOKEN_ID + last_norm + size.num_layers * layer


def layer_workspace(size: PolicySize, precision: Precision, tensor_parallel: int = 1) -> int:
    """Bytes a token of the gradients inside a layer: ``compute * 3 * mlp / tensor_parallel + 2 * residual * hidden``.

    The MLP's backward pass holds the gradient of the inner product and of its two factors at once, beside those of the
    layer's output and of the residual stream.
    """
    return 3 * precision.compute * size.mlp_size // tensor_parallel + 2 * precision.residual * size.hidden_size


def weight_casts(size: PolicySize, precision: Precision, tensor_parallel: int = 1) -> int:
    """Bytes of the copies that autocast makes of all matrices and keeps to the end of a step, of gathered ones too."""
    if not precision.is_autocast:
        return 0
    layers = size.num_layers * size.linear_layer_weights // tensor_parallel
    return precision.compute * (layers + size.vocab_size * size.hidden_size)


def log_prob_buffers(size: PolicySize, num_tokens: int, chunk_bytes: int | None) -> int:
    """Bytes of vocabulary-sized tensors while log-probs of tokens are taken.

    All at once it is logits, their log-softmax, its exponential and its clamp: ``4 * f * vocab`` a token. In chunks it
    is two such tensors of a chunk, a third of the chunk that is kept for the backward pass, and the head's gradient,
    which is summed over chunks in float32: ``1.5 * chunk + f * vocab * hidden``.

    Args:
        size: of the model.
        num_tokens: scored tokens of a micro-batch.
        chunk_bytes: memory of the two tensors of a chunk; None takes all tokens at once.
    """
    token = _FLOAT * size.vocab_size
    if chunk_bytes is None:
        return _UNCHUNKED_BUFFERS * num_tokens * token
    chunk = min(num_tokens * _CHUNK_BUFFERS * token, max(chunk_bytes, _CHUNK_BUFFERS * token))
    return chunk * 3 // 2 + token * size.hidden_size


def cache_bytes(size: PolicySize, num_bytes: int, tensor_parallel: int = 1) -> int:
    """Bytes a token of the key-value cache: ``2 * num_layers * num_kv_heads * head_size * num_bytes``.

    A process of several holds some of the heads, at least one.

    See "Efficient Memory Management for Large Language Model Serving with PagedAttention"
    (https://arxiv.org/abs/2309.06180), section 3.

    Args:
        size: of the model.
        num_bytes: of one number in the cache.
        tensor_parallel: processes that share every layer.
    """
    heads = -(-size.num_kv_heads // tensor_parallel)
    return 2 * size.num_layers * heads * size.head_size * num_bytes


def step_workspace(
    size: PolicySize,
    precision: Precision,
    num_tokens: int,
    num_scored: int,
    checkpointing: bool,
    chunk_bytes: int | None,
    tensor_parallel: int = 1,
    is_gathered: bool = False,
) -> int:
    """Bytes that the worst moment of a micro-batch takes beside what it saves.

    That is the output head (`log_prob_buffers`, or one of them beside the gradient of the head), or the backward pass
    of the last layer: `layer_workspace`, the gradient of one matrix before it is added to that of earlier
    micro-batches, and with checkpointing `layer_activations` of that layer.

    Args:
        size: of the model.
        precision: of the step.
        num_tokens: of a micro-batch.
        num_scored: tokens whose log-probs one process takes.
        checkpointing: whether layers are computed again in the backward pass.
        chunk_bytes: see `log_prob_buffers`.
        tensor_parallel: processes that share every layer.
        is_gathered: whether the gradient of the head is that of a gathered weight, which counts for itself.
    """
    head = log_prob_buffers(size, num_scored, chunk_bytes)
    head_size = size.vocab_size * size.hidden_size
    if chunk_bytes is None:
        gradient = 0 if is_gathered else head_size * precision.weight
        head = max(head, size.vocab_size * num_scored * _FLOAT + gradient)
    elif is_gathered and precision.residual == _FLOAT:
        # It is summed up where it stays; in low precision, it is cast afterwards.
        head -= head_size * _FLOAT
    layer = layer_workspace(size, precision, tensor_parallel) * num_tokens
    layer += size.hidden_size * size.mlp_size * precision.weight // tensor_parallel
    if checkpointing:
        layer += layer_activations(size, precision, tensor_parallel) * num_tokens
    return max(head, layer)
