"""What is known of each row in use, in tensors that a step reads and writes for all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from appo.engines.base import Request


class BatchState:
    """Tokens, random numbers and limits of the rows in use; along a row, everything stands at its position.

    Attributes:
        token_ids: ``[slots, T]`` int64, prompt and sampled.
        log_probs: ``[slots, T]`` of sampled tokens.
        uniforms: ``[slots, T]`` random number that draws the token of each position.
        lengths: ``[slots]`` int64, tokens so far.
        limits: ``[slots]`` int64, tokens at which the row ends at the latest.
        stop_numbers: ``[slots]`` int64, of the row's stop strings.
    """

    def __init__(self, device: torch.device) -> None:
        self.token_ids = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(0, 0, device=device)
        self.uniforms = torch.zeros(0, 0, device=device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.limits = torch.zeros(0, dtype=torch.long, device=device)
        self.stop_numbers = torch.zeros(0, dtype=torch.long, device=device)

    def reserve(self, num_rows: int, length: int) -> None:
        """Makes room for the first `num_rows` slots and for rows of `length` tokens."""
        rows, tokens = self.token_ids.shape
        if num_rows <= rows and length <= tokens:
            return
        rows = rows if num_rows <= rows else max(num_rows, 2 * rows)
        tokens = tokens if length <= tokens else max(length, tokens * 3 // 2)
        self.token_ids = _grown(self.token_ids, rows, tokens)
        self.log_probs = _grown(self.log_probs, rows, tokens)
        self.uniforms = _grown(self.uniforms, rows, tokens)
        self.lengths = _grown(self.lengths, rows)
        self.limits = _grown(self.limits, rows)
        self.stop_numbers = _grown(self.stop_numbers, rows)

    def fill(self, row: int, request: Request, stop_number: int) -> None:
        """Begins a row. Its random numbers come from the CPU and the request's seed alone, on every device."""
        length = len(request.token_ids)
        limit = length + request.max_tokens
        generator = torch.Generator().manual_seed(request.seed)
        self.token_ids[row, :length] = torch.tensor(request.token_ids)
        self.uniforms[row, length:limit] = torch.rand(request.max_tokens, generator=generator)
        self.lengths[row] = length
        self.limits[row] = limit
        self.stop_numbers[row] = stop_number

    def append(self, num_rows: int, token_ids: Tensor, log_probs: Tensor) -> Tensor:
        """Adds a token to each of the first rows.

        Args:
            num_rows: rows in use.
            token_ids: ``[B, 1]`` int64.
            log_probs: ``[B, 1]``.

        Returns:
            ``[B]`` bool, True on rows that have reached their limit.
        """
        lengths = self.lengths[:num_rows]
        self.token_ids[:num_rows].scatter_(1, lengths[:, None], token_ids)
        self.log_probs[:num_rows].scatter_(1, lengths[:, None], log_probs)
        lengths += 1
        return lengths >= self.limits[:num_rows]

    def sampled_tokens(self, row: int, request: Request) -> list[int]:
        """The continuation so far."""
        tokens: list[int] = self.token_ids[row, len(request.token_ids) : int(self.lengths[row])].tolist()
        return tokens

    def sampled_log_probs(self, row: int, request: Request, num_sampled: int) -> list[float]:
        """The log-probs of the first `num_sampled` tokens of the continuation."""
        start = len(request.token_ids)
        log_probs: list[float] = self.log_probs[row, start : start + num_sampled].tolist()
        return log_probs

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copies some rows over others."""
        if not sources:
            return
        for tensor in (
            self.token_ids,
            self.log_probs,
            self.uniforms,
            self.lengths,
            self.limits,
            self.stop_numbers,
        ):
            tensor[targets] = tensor[sources]


def _grown(tensor: Tensor, *shape: int) -> Tensor:
    grown = tensor.new_zeros(shape)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
