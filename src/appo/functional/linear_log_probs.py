"""Log-probs of tokens from hidden states, a chunk of the vocabulary-sized logits at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from appo.functional.log_probs import at_least_single, gradient_by_logits

_CHUNK_BYTES = {"cpu": 2**27}
_CHUNK_BYTES_ELSEWHERE = 2**30
_CHUNK_BUFFERS = 2
"""Tensors of vocabulary size that a chunk takes; the gradient of a soft cap or an entropy takes one more."""


@dataclass(frozen=True)
class LogitTransform:
    """What becomes of a head's outputs before the softmax: ``soft_cap * tanh(scale * y / soft_cap) / temperature``.

    Attributes:
        scale: of the outputs.
        soft_cap: bound of the logits; None leaves them unbounded: ``scale * y / temperature``.
        temperature: positive.
    """

    scale: float = 1.0
    soft_cap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def apply_(self, outputs: Tensor) -> Tensor:
        """Turns outputs of a head into logits, in place."""
        if self.soft_cap is not None:
            return outputs.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap / self.temperature)
        factor = self.scale / self.temperature
        return outputs if factor == 1.0 else outputs.mul_(factor)

    def backward_(self, grad: Tensor, logits: Tensor | None) -> Tensor:
        """Turns the gradient by `logits`, of which only a soft cap has need, into that by the outputs, in place."""
        if self.soft_cap is not None:
            assert logits is not None
            tanh = logits * (self.temperature / self.soft_cap)
            grad.sub_(tanh.square_().mul_(grad))
        factor = self.scale / self.temperature
        return grad if factor == 1.0 else grad.mul_(factor)


_PLAIN = LogitTransform()


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    transform: LogitTransform = _PLAIN,
    max_bytes: int | None = None,
    with_entropies: bool = True,
) -> tuple[Tensor, Tensor]:
    """`token_log_probs` from hidden states and a linear LM head, never with the logits of all tokens at once.

    Logits are computed a chunk of tokens at a time, and once more in the backward pass, except those of the last chunk,
    with which it begins. First-order gradients flow through both results to hidden states, weight and bias.

    Args:
        hidden: ``[N, H]`` hidden states, already those that predict `token_ids`.
        weight: ``[V, H]`` of the head.
        bias: ``[V]`` of the head, finite; None adds nothing.
        token_ids: ``[N]`` int64.
        transform: from the head's outputs to logits.
        max_bytes: memory of a chunk, at least of one token; None takes 128 MiB on a CPU and 1 GiB elsewhere.
        with_entropies: computes them too, which goes through all logits two times more; else they are 0.

    Returns:
        ``[N]`` log-probs and ``[N]`` entropies in nats; float64 for hidden states in float64, else float32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if hidden.shape[:-1] != token_ids.shape:
        raise ValueError(f"token_ids must have shape {list(hidden.shape[:-1])}, got {list(token_ids.shape)}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    most = max(1, (max_bytes or _most_bytes(device)) // _bytes_per_token(len(weight), hidden.dtype))
    with torch.autocast(device, enabled=False):
        log_probs, entropies = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, token_ids, transform, most, with_entropies
        )
    return log_probs, entropies


def chunk_bytes(num_tokens: int, vocab_size: int, dtype: torch.dtype, device: str) -> int:
    """Memory that `linear_log_probs` takes for its chunks, in bytes.

    Args:
        num_tokens: N.
        vocab_size: V.
        dtype: of the hidden states.
        device: type of the device, such as `cuda`.
    """
    per_token = _bytes_per_token(vocab_size, dtype)
    return per_token * min(num_tokens, max(1, _most_bytes(device) // per_token))


def _most_bytes(device: str) -> int:
    return _CHUNK_BYTES.get(device, _CHUNK_BYTES_ELSEWHERE)


def _bytes_per_token(vocab_size: int, dtype: torch.dtype) -> int:
    return _CHUNK_BUFFERS * vocab_size * at_least_single(dtype).itemsize


class _LinearLogProbs(torch.autograd.Function):
    """Goes through the chunks from the first to the last, and back.

    Between the two passes it holds no logits but those of the last chunk; hidden states are there anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        transform: LogitTransform,
        most: int,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        chunks = list(_chunks(len(hidden), most))
        dtype = at_least_single(hidden.dtype)
        log_probs, entropies, normalizers = (hidden.new_zeros(len(hidden), dtype=dtype) for _ in range(3))
        buffers = _buffers(chunks, weight, dtype)
        log_softmax = buffers[0]
        for chunk in chunks:
            logits, log_softmax = (buffer[: chunk.stop - chunk.start] for buffer in buffers)
            _head(hidden[chunk], weight, bias, transform, out=logits)
            torch.log_softmax(logits, dim=-1, out=log_softmax)
            index = token_ids[chunk].unsqueeze(-1)
            log_probs[chunk] = log_softmax.gather(-1, index).squeeze(-1)
            # Logit minus log-prob, of whichever token: what turns the logits of the backward pass into a log-softmax.
            normalizers[chunk] = logits.gather(-1, index).squeeze(-1) - log_probs[chunk]
            if with_entropies:
                entropies[chunk] = torch.exp(log_softmax, out=logits).mul_(log_softmax).sum(-1).neg_()
        # The backward pass begins with the last chunk, and need not compute that again.
        kept = log_softmax if any(ctx.needs_input_grad) else None
        ctx.set_materialize_grads(False)
        if not with_entropies:
            ctx.mark_non_differentiable(entropies)
        ctx.save_for_backward(hidden, weight, bias, token_ids, entropies, normalizers, kept)
        ctx.transform, ctx.chunks = transform, chunks
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, entropies, normalizers, kept = ctx.saved_tensors
        by_hidden, by_weight, by_bias, *_ = ctx.needs_input_grad
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(entropies)
        grad_hidden = torch.empty_like(hidden) if by_hidden else None
        # Sums over chunks are not rounded to half precision.
        grad_weight = torch.zeros_like(weight, dtype=entropies.dtype) if by_weight else None
        grad_bias = torch.zeros_like(bias, dtype=entropies.dtype) if by_bias else None
        grads, log_softmaxes = _buffers(ctx.chunks, weight, entropies.dtype)
        for chunk in reversed(ctx.chunks):
            rows = chunk.stop - chunk.start
            if (log_softmax := kept) is None:
                logits = _head(hidden[chunk], weight, bias, ctx.transform, out=log_softmaxes[:rows])
                log_softmax = logits.sub_(normalizers[chunk, None])
            kept = None
            grad = gradient_by_logits(
                log_softmax,
                token_ids[chunk].unsqueeze(-1),
                entropies[chunk],
                grad_log_probs[chunk],
                None if grad_entropies is None else grad_entropies[chunk],
                out=grads[:rows],
            )
            capped = None if ctx.transform.soft_cap is None else log_softmax + normalizers[chunk, None]
            grad = ctx.transform.backward_(grad, capped)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                _add_product_(grad_weight, grad.t(), hidden[chunk])
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _chunks(num_tokens: int, most: int) -> Iterator[slice]:
    """As few slices as may be, of nearly equal size."""
    number = -(-num_tokens // most)
    return (slice(num_tokens * i // number, num_tokens * (i + 1) // number) for i in range(number))


def _buffers(chunks: list[slice], weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Room for a chunk: taking it anew for every one costs more than some of the maths, on a CPU."""
    rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    return [torch.empty(rows, len(weight), dtype=dtype, device=weight.device) for _ in range(_CHUNK_BUFFERS)]


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform, out: Tensor) -> Tensor:
    """Logits, at least in single precision."""
    target = out if out.dtype == hidden.dtype else None
    if bias is None:
        outputs = torch.mm(hidden, weight.t(), out=target)
    else:
        outputs = torch.addmm(bias, hidden, weight.t(), out=target)
    return transform.apply_(outputs if target is not None else out.copy_(outputs))


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
