"""Looks passages up for the agent; where they come from is the back end's matter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from appo.registry import Registry
from appo.tools.base import TOOLS, Tool, ToolError


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

    def start(self) -> None:
        """Prepares for searches: indexes, connections; does nothing if the back end is started."""
        return

    def stop(self) -> None:
        """Frees what `start` took; does nothing if the back end is not started."""
        return


SEARCH_BACKENDS: Registry[SearchBackend] = Registry("search back end", group="appo.search_backends")


@TOOLS.register
@dataclass(frozen=True)
class SearchTool(Tool):
    """Answers a query with the passages that fit best, one a line."""

    backend: SearchBackend
    """What is searched."""
    max_results: int = 3
    """Most passages of one answer."""
    timeout_s: float = 30.0
    """Seconds after which a search is given up."""

    def __post_init__(self) -> None:
        if self.max_results < 1:
            raise ValueError(f"max_results must be positive, got {self.max_results}")
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
        passages = self.backend.search(query, self.max_results)[: self.max_results]
        # A line is a passage, so a passage is a line.
        lines = [" ".join(passage.split()) for passage in passages]
        return "\n".join(line for line in lines if line) or "No results found."
