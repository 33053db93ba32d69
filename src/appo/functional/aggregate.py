"""How the losses of tokens become one number."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "constant"]
"""Mean over tokens; mean over rows of their means, of their sums, or of their sums by a constant length."""


def aggregation_weights(
    mask: Tensor,
    mode: str,
    *,
    num_tokens: int | None = None,
    num_rows: int | None = None,
    length: int | None = None,
) -> Tensor:
    """The weight of every token in the loss: ``loss = (losses * weights).sum()``.

    With the totals of an optimizer step given, the shares of its micro-batches add up to the loss of the whole step,
    however it is cut. Without them the tokens and rows of `mask` count, and rows without tokens do not.

    Args:
        mask: ``[B, T]`` bool, True on tokens that count.
        mode: `token-mean`, `sequence-mean`, `sequence-sum`, or `constant` for sums divided by `length`.
        num_tokens: of the whole step.
        num_rows: of the whole step.
        length: tokens that `constant` divides by, whatever a row's own number.

    Returns:
        ``[B, T]`` float32 weights; 0 elsewhere.

    Raises:
        ValueError: if the mode is unknown, or it is `constant` and there is no length.
    """
    per_row = mask.sum(-1, keepdim=True)
    if mode == "token-mean":
        return mask / (per_row.sum().clamp(min=1) if num_tokens is None else max(1, num_tokens))
    rows = (per_row > 0).sum().clamp(min=1) if num_rows is None else max(1, num_rows)
    if mode == "sequence-mean":
        return mask / (per_row.clamp(min=1) * rows)
    if mode == "sequence-sum":
        return mask / rows
    if mode == "constant" and length is not None:
        return mask / (rows * length)
    raise ValueError(
        "mode must be token-mean, sequence-mean, sequence-sum, or constant with a length, "
        f"got {mode!r} with length {length}"
    )
