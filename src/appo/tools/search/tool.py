"""Looks passages up for the agent; where they come from is the back end's matter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from appo.core.registry import Registry
from appo.tools.base import TOOLS, TokenCodec, Tool, ToolError


class SearchBackend(ABC):
    """Something that can be searched. Searches come from several threads at once."""

    @abstractmethod
    def search(self, query: str, limit: int) -> list[str]:
        """Finds passages.

        Args:
            query: in the model's words, not empty.
            limit: most passages to return, at least 1.

        Returns:
            Passages as plain text, best first; none if nothing fits.

        Raises:
            ToolError: if the search failed for a reason the model should read.
        """

    @property
    def identity(self) -> str:
        """What the passages depend on: back ends of one identity answer a query alike. Known once they are started.

        Raises:
            TypeError: if the class neither shows its options in its `repr` nor defines an identity.
        """
        if type(self).__repr__ is object.__repr__:
            raise TypeError(f"{type(self).__qualname__} must define `identity` to be cached, got none")
        return repr(self)

    def start(self) -> None:
        """Prepares for searches: indexes, connections; does nothing if the back end is started."""
        return

    def stop(self) -> None:
        """Frees what `start` took; does nothing if the back end is not started."""
        return


SEARCH_BACKENDS: Registry[SearchBackend] = Registry("search back end", group="appo.search_backends")
"""Search back ends by class name, those of plug-ins included."""


@TOOLS.register
@dataclass(frozen=True)
class SearchTool(Tool):
    """Answers a query with the passages that fit best, one a line.

    An answer that has more tokens than a result may have loses them from its longest passages, not from its end: every
    passage keeps its beginning.
    """

    parameter_name = "query"

    backend: SearchBackend
    """What is searched."""
    max_results: int = 3
    """Most passages of one answer."""
    max_passage_chars: int = 1000
    """Characters of one passage; the rest is cut."""
    max_passage_tokens: int | None = None
    """Tokens of one line of the answer, counted by the policy's tokenizer; `null`: no limit but the answer's own."""
    passage_format: str = "{passage}"
    """A line of the answer: ``{passage}`` stands for the passage, ``{number}`` for its number from 1 on. The authors'
    release has ``Page {number}: {passage}``."""
    timeout_s: float = 30.0
    """Seconds after which a search is given up."""

    def __post_init__(self) -> None:
        for name in ("max_results", "max_passage_chars", "max_passage_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if "{passage}" not in self.passage_format or "\n" in self.passage_format:
            raise ValueError(f"passage_format must be one line with {{passage}} in it, got {self.passage_format!r}")
        if not 0.0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive and finite, got {self.timeout_s}")

    @property
    def name(self) -> str:
        return "search"

    def start(self) -> None:
        self.backend.start()

    def stop(self) -> None:
        self.backend.stop()

    def __call__(self, argument: str) -> str:
        # Models quote a phrase as they would for a search engine on the web.
        query = argument.replace('"', " ").strip()
        if not query:
            raise ToolError("The query is empty.")
        found = self.backend.search(query, self.max_results)[: self.max_results]
        # A line is a passage, so a passage is a line.
        passages = [" ".join(passage.split())[: self.max_passage_chars] for passage in found]
        return "\n".join(self._lines(filter(None, passages))) or "No results found."

    def _lines(self, passages: Iterable[str]) -> Iterator[str]:
        for number, passage in enumerate(passages, start=1):
            yield self.passage_format.replace("{number}", str(number)).replace("{passage}", passage)

    def cut(self, text: str, max_tokens: int, codec: TokenCodec) -> str:
        if self.max_passage_tokens is None and codec.cut(text, max_tokens) == text:
            return text
        # The best passages alone where there is not a token for each line and each line's end.
        lines = text.split("\n")[: (max_tokens + 1) // 2]
        num_separators = len(lines) - 1
        longest = self.max_passage_tokens or max_tokens
        sizes = [min(len(codec.encode(line)), longest) for line in lines]
        shares = fair_shares(sizes, max_tokens - num_separators * len(codec.encode("\n")))
        cut_lines = (codec.cut(line, share) for line, share in zip(lines, shares, strict=True))
        shortened = "\n".join(filter(None, cut_lines))
        # Tokens that span a line's end are counted differently when lines stand together.
        return codec.cut(shortened, max_tokens)


def fair_shares(sizes: Sequence[int], budget: int) -> list[int]:
    """Spreads a budget: small requests are met in full, what is left is shared equally among the others.

    Args:
        sizes: what is asked for, not negative.
        budget: to spread; a negative one counts as 0.

    Returns:
        As many shares, each at most the size it belongs to; their sum is the smaller of `budget` and the sum of sizes.
    """
    shares, left = [0] * len(sizes), max(budget, 0)
    for rank, position in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[position] = min(sizes[position], left // (len(sizes) - rank))
        left -= shares[position]
    return shares
