"""Which sampled tokens may be branch points, read off the text that they spell."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from appo.core.batch import TrajectoryBatch
from appo.rewards.answer_text import last_boxed_span
from appo.rewards.response_format import last_answer_span

Exclusion = Literal["whitespace", "punctuation", "special", "tags", "calls", "answer"]
"""Tokens that are no branch points: white space alone; punctuation and symbols alone; special ones; those that touch a
tag such as ``<search>``; the inside of a tool call; the inside of the answer that rewards read."""

_SPANS: frozenset[Exclusion] = frozenset(("tags", "calls", "answer"))
"""Kinds that are stretches of text."""

DEFAULT_EXCLUSIONS: tuple[Exclusion, ...] = ("whitespace", "special", "tags")
"""Kinds of tokens that are no branch points unless a config says otherwise."""

_TAG = re.compile(r"</?[A-Za-z_][\w-]*>")
_OTHER = "\0"
"""Stands for each token that was not sampled, so that no tag reaches over one."""
_END_OF_CALL = re.compile(rf"</([A-Za-z_][\w-]*)>[^{_OTHER}<]*{_OTHER}")


class CandidateFilter:
    """Tells the tokens that leave a branch something to decide from those that do not.

    Args:
        tokenizer: of the policy.
        exclude: kinds of tokens that are no branch points.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, exclude: Sequence[Exclusion] = DEFAULT_EXCLUSIONS) -> None:
        self.tokenizer = tokenizer
        self.exclude: frozenset[Exclusion] = frozenset(exclude)
        special = set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
        # The last entry stands for tokens that were not sampled, or that the tokenizer does not know.
        self._texts = [*texts, _OTHER]
        self._widths = torch.tensor([len(text) for text in self._texts])
        # By kind, ``[V]`` bool: tokens that are excluded whatever stands around them.
        self._of_kind = {
            "special": torch.tensor([token_id in special for token_id in range(len(texts))]),
            "whitespace": torch.tensor([not text.strip() for text in texts]),
            "punctuation": torch.tensor([_is_punctuation(text) for text in texts]),
        }
        self._allowed = torch.ones(len(texts), dtype=torch.bool)
        for kind in self.exclude - _SPANS:
            self._allowed &= ~self._of_kind[kind]

    def __call__(self, batch: TrajectoryBatch) -> Tensor:
        """Where a branch may leave.

        Args:
            batch: possible parents.

        Returns:
            ``[B, T]`` bool: sampled, known to the tokenizer, not the last token, of no excluded kind.
        """
        known = batch.token_ids < len(self._allowed)
        allowed = self._allowed[batch.token_ids.where(known, 0)] & known
        is_inner = torch.arange(batch.token_ids.shape[1]) < (batch.lengths - 1).unsqueeze(-1)
        candidates = batch.response_mask & allowed & is_inner
        if kinds := self.exclude & _SPANS:
            candidates &= ~self._inside(batch, kinds)
        return candidates

    def excluded(self, batch: TrajectoryBatch) -> dict[Exclusion, Tensor]:
        """Why sampled tokens are no branch points: ``[B, T]`` bool of each kind that is excluded.

        Args:
            batch: possible parents.
        """
        ids = batch.token_ids.where(batch.token_ids < len(self._allowed), 0)
        return {
            kind: batch.response_mask
            & (self._inside(batch, frozenset((kind,))) if kind in _SPANS else self._of_kind[kind][ids])
            for kind in get_args(Exclusion)
            if kind in self.exclude
        }

    def in_answer(self, batch: TrajectoryBatch) -> Tensor:
        """``[B, T]`` bool, tokens inside the answer that rewards read, whatever is excluded."""
        return self._inside(batch, frozenset(("answer",)))

    def _inside(self, batch: TrajectoryBatch, kinds: frozenset[Exclusion]) -> Tensor:
        """``[B, T]`` bool, tokens that overlap a tag, a call or an answer of the given kinds."""
        known = batch.token_ids < len(self._allowed)
        text_ids = batch.token_ids.where(batch.response_mask & known, len(self._texts) - 1)
        inside = torch.zeros_like(batch.response_mask)
        for row, ends in enumerate(self._widths[text_ids].cumsum(-1)):
            text = "".join(map(self._texts.__getitem__, text_ids[row].tolist()))
            inside[row] = _overlaps(list(_spans(text, kinds)), ends)
        return inside


def _overlaps(spans: Sequence[tuple[int, int]], ends: Tensor) -> Tensor:
    """Tokens that overlap a span.

    Args:
        spans: ranges of characters, end exclusive.
        ends: ``[T]`` int64, where the text of each token ends.

    Returns:
        ``[T]`` bool.
    """
    if not spans:
        return torch.zeros_like(ends, dtype=torch.bool)
    first, last = torch.tensor(spans).T.contiguous()
    edges = torch.zeros(len(ends) + 1, dtype=torch.int64)
    edges.index_add_(0, torch.searchsorted(ends, first, right=True), torch.ones_like(first))
    edges.index_add_(0, torch.searchsorted(ends, last - 1, right=True) + 1, -torch.ones_like(last))
    return edges.cumsum(0)[:-1] > 0


def _spans(text: str, kinds: frozenset[Exclusion]) -> Iterator[tuple[int, int]]:
    """Character ranges of tags, calls and answers, end exclusive."""
    if "tags" in kinds:
        yield from (tag.span() for tag in _TAG.finditer(text))
    if "calls" in kinds:
        for closing in _END_OF_CALL.finditer(text):
            opening = f"<{closing[1]}>"
            start = text.rfind(opening, text.rfind(_OTHER, 0, closing.start()) + 1, closing.start())
            if 0 <= start < closing.start() - len(opening):
                yield start + len(opening), closing.start()
    if "answer" in kinds:
        for span in (last_answer_span(text), last_boxed_span(text)):
            if span is not None and _OTHER not in text[slice(*span)]:
                yield span


def check_exclusions(exclude: Sequence[str]) -> None:
    """Refuses kinds of tokens that there are not.

    Raises:
        ValueError: names the first of them.
    """
    known = get_args(Exclusion)
    for kind in exclude:
        if kind not in known:
            raise ValueError(f"rollout.branching.exclude must name kinds among {', '.join(known)}, got {kind!r}")


def _is_punctuation(text: str) -> bool:
    stripped = text.strip()
    return bool(stripped) and all(unicodedata.category(character)[0] in "PS" for character in stripped)
