"""Keeps the keys and values of finished sequences, so that what begins like them need not be computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

TokenIds = tuple[int, ...]

BLOCK_TOKENS = 16
"""Sequences are found by whole blocks of this many tokens; the exact length they share is then counted."""


@dataclass(frozen=True, eq=False)
class StoredPrefix:
    """The keys and values of one sequence.

    Attributes:
        token_ids: the sequence.
        states: ``[layers, 2, heads, T, head size]``.
    """

    token_ids: TokenIds
    states: Tensor


class PrefixCache:
    """Sequences by the blocks they begin with; those used least recently leave when there are too many tokens.

    Args:
        max_tokens: kept over all sequences; 0 keeps none.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._stored: OrderedDict[TokenIds, StoredPrefix] = OrderedDict()
        self._by_block: dict[int, StoredPrefix] = {}

    def accepts(self, num_tokens: int) -> bool:
        """True if `insert` stores sequences of that many tokens."""
        return BLOCK_TOKENS <= num_tokens <= self.max_tokens

    def insert(self, token_ids: TokenIds, states: Tensor) -> None:
        """Stores a sequence in place of those it continues.

        Args:
            token_ids: the sequence, `T` tokens.
            states: ``[layers, 2, heads, T, head size]``, not to be written to afterwards.
        """
        if not self.accepts(len(token_ids)) or token_ids in self._stored:
            return
        known, num_shared = self._find(token_ids)
        if known is not None and num_shared == len(known.token_ids):
            self._remove(known)
        prefix = StoredPrefix(token_ids, states)
        self._stored[token_ids] = prefix
        self._by_block.update(dict.fromkeys(_block_hashes(token_ids), prefix))
        self.num_tokens += len(token_ids)
        while self.num_tokens > self.max_tokens:
            self._remove(next(iter(self._stored.values())))

    def find(self, token_ids: TokenIds) -> Tensor | None:
        """The keys and values of the longest beginning of `token_ids` that is known, None if no block is."""
        prefix, num_shared = self._find(token_ids)
        if prefix is None:
            return None
        self._stored.move_to_end(prefix.token_ids)
        return prefix.states[:, :, :, :num_shared]

    def clear(self) -> None:
        """Forgets everything."""
        self._stored.clear()
        self._by_block.clear()
        self.num_tokens = 0

    def _find(self, token_ids: TokenIds) -> tuple[StoredPrefix | None, int]:
        for block_hash in reversed(list(_block_hashes(token_ids))):
            prefix = self._by_block.get(block_hash)
            # Different blocks may have equal hashes, so only the tokens tell what is shared.
            if prefix is not None and (num_shared := _num_shared(prefix.token_ids, token_ids)) >= BLOCK_TOKENS:
                return prefix, num_shared
        return None, 0

    def _remove(self, prefix: StoredPrefix) -> None:
        del self._stored[prefix.token_ids]
        self.num_tokens -= len(prefix.token_ids)
        for block_hash in _block_hashes(prefix.token_ids):
            if self._by_block.get(block_hash) is prefix:
                del self._by_block[block_hash]


def _num_shared(a: TokenIds, b: TokenIds) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _block_hashes(token_ids: TokenIds) -> Iterator[int]:
    """One hash a whole block, of all tokens up to its end."""
    running = 0
    for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        running = hash((running, token_ids[start : start + BLOCK_TOKENS]))
        yield running
