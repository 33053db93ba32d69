"""Finds words in what a policy wrote, token by token."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby


@dataclass(frozen=True)
class SampledRun:
    """A stretch that the policy wrote without a break.

    Attributes:
        first: position of its first token.
        tokens: the text of each.
    """

    first: int
    tokens: Sequence[str]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.tokens)

    def position_of(self, words: Collection[str], start: int) -> tuple[int, str]:
        """The first of some words behind a letter, and the position of the token that holds its first letter.

        The space before a word belongs to its first token, or is a token by itself, which does not count.

        Args:
            words: one of which stands there.
            start: number of the letter.
        """
        word = re.compile(rf"\b(?:{'|'.join(words)})\b").search(self.text, start)
        assert word is not None, "one of the words stands there"
        ends = accumulate(map(len, self.tokens))
        return self.first + next(i for i, end in enumerate(ends) if end > word.start()), word.group()


def sampled_runs(tokens: Sequence[str], is_sampled: Sequence[bool]) -> Iterator[SampledRun]:
    """The stretches of a trajectory that the policy wrote, in their order.

    Args:
        tokens: the text of every position, prompt included.
        is_sampled: whether the policy sampled it.
    """
    first = 0
    for sampled, run in groupby(zip(is_sampled, tokens, strict=True), key=lambda pair: bool(pair[0])):
        texts = [text for _, text in run]
        if sampled:
            yield SampledRun(first, texts)
        first += len(texts)
