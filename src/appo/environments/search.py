"""Lexical search over the facts of a generated world."""

from __future__ import annotations

import heapq
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from appo.environments.world import World
from appo.tools.search.tool import SEARCH_BACKENDS, SearchBackend


@SEARCH_BACKENDS.register
@dataclass(frozen=True)
class WorldSearch(SearchBackend):
    """Ranks the world's facts by the words and runs of words that they share with the query, rare ones first.

    A shared term counts its inverse document frequency, ``log(N / n)`` for a term in `n` of `N` facts; facts that score
    alike keep the world's order.
    """

    world: World = field(default_factory=World)
    """Where the facts come from."""
    distractors: int = 0
    """Most facts returned beyond the best one; like it they share a term with the query, and count in the limit."""

    def __post_init__(self) -> None:
        if self.distractors < 0:
            raise ValueError(f"distractors must not be negative, got {self.distractors}")

    def search(self, query: str, limit: int) -> list[str]:
        relation, _, subject = query.strip().partition(" of ")
        named = self.world.find(relation, subject)
        if named is not None and not self.distractors:
            # Nothing shares more with a query than the fact that it names: the ranking need not be made.
            return [named.sentence]
        return self._rank(query, limit)

    def _rank(self, query: str, limit: int) -> list[str]:
        facts = self.world.facts
        scores: dict[int, float] = defaultdict(float)
        for term in sorted(_terms(query)):
            holders = self._index.get(term, ())
            if 0 < len(holders) < len(facts):
                weight = math.log(len(facts) / len(holders))
                for fact in holders:
                    scores[fact] += weight
        best = heapq.nsmallest(min(limit, 1 + self.distractors), scores, key=lambda fact: (-scores[fact], fact))
        return [facts[fact].sentence for fact in best]

    @cached_property
    def _index(self) -> dict[str, tuple[int, ...]]:
        """Facts that hold a term, by term."""
        holders: dict[str, list[int]] = defaultdict(list)
        for position, fact in enumerate(self.world.facts):
            for term in _terms(fact.sentence):
                holders[term].append(position)
        return {term: tuple(positions) for term, positions in holders.items()}


def _terms(text: str) -> set[str]:
    """Words, and runs of two and three, which tell ``boss of Ana Ruiz`` from ``boss of Ana Lind is Ana Ruiz``."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}
