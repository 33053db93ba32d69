"""Log-probs of tokens, and the one place that knows which position predicts which token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def predicting_positions(mask: Tensor) -> Tensor:
    """Where the hidden states stand that predict the selected tokens: one position before each.

    ``hidden[predicting_positions(mask)]`` is then ``[N, H]``, in the row-major order of ``token_ids[mask]``.

    Args:
        mask: ``[B, T]`` bool, True on tokens to score. Nothing predicts position 0, so it must be False there.

    Returns:
        ``[B, T]`` bool.
    """
    return torch.nn.functional.pad(mask[:, 1:], (0, 1))


def scatter_scored(values: Tensor, mask: Tensor) -> Tensor:
    """Puts values of the selected tokens back where the tokens stand.

    Args:
        values: ``[N]``, in the row-major order of `mask`.
        mask: ``[B, T]`` bool, True on N tokens.

    Returns:
        ``[B, T]`` in the dtype of `values`; 0 elsewhere.
    """
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def token_log_probs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of given tokens, and the entropies of the distributions they were drawn from.

    ``log p = log_softmax(logits / temperature)``, ``H = -sum_v p_v * log p_v``

    Both come from one log-softmax, the only tensor of vocabulary size that is kept for the backward pass. First-order
    gradients flow through both. Logits of ``-inf`` are tokens that cannot be drawn.

    Args:
        logits: ``[..., V]`` unnormalized, already those that predict `token_ids`.
        token_ids: ``[...]`` int64.
        temperature: positive.

    Returns:
        ``[...]`` log-probs and ``[...]`` entropies in nats; float64 for logits in float64, else float32.

    Raises:
        ValueError: if the temperature is not positive, or the shapes do not fit.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if logits.shape[:-1] != token_ids.shape:
        raise ValueError(f"token_ids must have shape {list(logits.shape[:-1])}, got {list(token_ids.shape)}")
    precise = logits.to(at_least_single(logits.dtype))
    log_probs, entropies = _TokenLogProbs.apply(precise, token_ids, temperature)  # type: ignore[no-untyped-call]
    return log_probs, entropies


class _TokenLogProbs(torch.autograd.Function):
    """Log-softmax, gathered log-probs and entropies in one node.

    Left to autograd, the entropies alone would keep a second tensor of vocabulary size, needed or not.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        log_softmax = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
        index = token_ids.unsqueeze(-1)
        # Clamped so that tokens of probability 0 count 0 * finite, not 0 * inf.
        entropies = log_softmax.exp().mul_(log_softmax.clamp(min=_lowest(logits))).sum(-1).neg_()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(log_softmax, index, entropies)
        ctx.temperature = temperature  # type: ignore[attr-defined]
        return log_softmax.gather(-1, index).squeeze(-1), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor, None, None]:
        log_softmax, index, entropies = ctx.saved_tensors
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(entropies)
        grad = gradient_by_logits(log_softmax, index, entropies, grad_log_probs, grad_entropies)
        return grad.div_(ctx.temperature), None, None


def gradient_by_logits(
    log_softmax: Tensor,
    index: Tensor,
    entropies: Tensor,
    grad_log_probs: Tensor,
    grad_entropies: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient of log-probs and entropies by the logits, both in one pass over the vocabulary.

    ``d log p_i / d logit_v = [v = i] - p_v``  and  ``d H / d logit_v = -p_v * (log p_v + H)``

    Args:
        log_softmax: ``[..., V]``.
        index: ``[..., 1]`` int64, the tokens `i`.
        entropies: ``[...]``, the `H`.
        grad_log_probs: ``[...]`` gradient of the log-probs.
        grad_entropies: ``[...]`` that of the entropies; None if there is none.
        out: takes the result.
    """
    grad = torch.exp(log_softmax, out=out)
    if grad_entropies is None:
        grad.mul_(grad_log_probs.neg().unsqueeze(-1))
    else:
        factor = log_softmax.clamp(min=_lowest(log_softmax)).add_(entropies.unsqueeze(-1))
        grad.mul_(factor.mul_(grad_entropies.neg().unsqueeze(-1)).sub_(grad_log_probs.unsqueeze(-1)))
    return grad.scatter_add_(-1, index, grad_log_probs.unsqueeze(-1))


def _lowest(like: Tensor) -> float:
    """Stands in for ``-inf`` where it meets a probability of 0; far enough from overflow to be scaled."""
    return torch.finfo(like.dtype).min / 1e6


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute log-probs in: half precision would round probabilities away."""
    return dtype if dtype == torch.float64 else torch.float32
