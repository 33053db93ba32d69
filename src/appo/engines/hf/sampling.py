"""Draws next tokens for many rows at once, each row by its own rules and its own random number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from appo.engines.base import SamplingParams


@dataclass(frozen=True, eq=False)
class SamplingRules:
    """The sampling parameters of `B` rows; a rule that changes no row is None.

    Attributes:
        temperature: ``[B, 1]`` divisors of the logits, 1 on greedy rows.
        is_greedy: ``[B]`` bool, True on rows that take the most likely token.
        filtered: ``[F]`` int64, rows that keep only part of the vocabulary.
        top_k: ``[F, 1]`` int64, most likely tokens kept by each of them.
        top_p: ``[F, 1]`` share of probability that the tokens kept by each of them hold together.
    """

    temperature: Tensor | None = None
    is_greedy: Tensor | None = None
    filtered: Tensor | None = None
    top_k: Tensor | None = None
    top_p: Tensor | None = None

    @classmethod
    def stack(cls, rows: list[SamplingParams], vocab_size: int, device: torch.device) -> SamplingRules:
        """Collects the parameters of rows in their order."""
        greedy = [row.temperature == 0.0 for row in rows]
        temperature = [row.temperature or 1.0 for row in rows]
        filtered = [i for i, row in enumerate(rows) if not greedy[i] and (row.top_k or row.top_p < 1.0)]
        top_k = [[rows[i].top_k or vocab_size] for i in filtered]
        top_p = [[rows[i].top_p] for i in filtered]
        return cls(
            torch.tensor(temperature, device=device)[:, None] if any(t != 1.0 for t in temperature) else None,
            torch.tensor(greedy, device=device) if any(greedy) else None,
            torch.tensor(filtered, device=device) if filtered else None,
            torch.tensor(top_k, device=device) if filtered else None,
            torch.tensor(top_p, device=device) if filtered else None,
        )


def sample(logits: Tensor, uniforms: Tensor, rules: SamplingRules) -> tuple[Tensor, Tensor]:
    """Draws one token a row by inverting the cumulative distribution.

    Args:
        logits: ``[B, V]`` float32.
        uniforms: ``[B, 1]`` float32 random numbers in [0, 1), multiples of ``2**-24``.
        rules: how each row is drawn.

    Returns:
        ``[B, 1]`` int64 tokens, and ``[B, 1]`` their log-probs under the distribution they were drawn from; greedy rows
        report the plain log-softmax.
    """
    if rules.temperature is not None:
        logits = logits / rules.temperature
    if rules.filtered is not None and rules.top_k is not None and rules.top_p is not None:
        kept = keep_most_likely(logits[rules.filtered], rules.top_k, rules.top_p)
        logits = logits.index_copy(0, rules.filtered, kept)
    probs = logits.softmax(-1)
    cumulative = probs.cumsum(-1)
    # Multiples of 2**-24 below 1, as torch draws them, keep the product below the total in float32 arithmetic too.
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # Rounding lets a parallel sum rise, or fall, at a token that adds nothing to it.
    tokens = torch.where(probs.gather(-1, tokens) > 0.0, tokens, probs.argmax(-1, keepdim=True))
    if rules.is_greedy is not None:
        tokens = torch.where(rules.is_greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    return tokens, probs.gather(-1, tokens).log()


def keep_most_likely(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Rules out all but the most likely tokens: first all beyond `top_k`, then those beyond `top_p` of what is left.

    Args:
        logits: ``[B, V]``.
        top_k: ``[B, 1]`` int64, at least 1.
        top_p: ``[B, 1]`` in (0, 1]; the token that reaches the share is kept, so one always is.

    Returns:
        ``[B, V]`` logits with ``-inf`` on tokens ruled out.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(rank >= top_k, float("-inf"))
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    # A share of 1 keeps everything, also where rounding lets the sum reach 1 early.
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1.0) & (rank > 0), float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)
