"""A BM25 index of passages in a folder, from which it is used without being read into memory."""

from __future__ import annotations

import json
import logging
import mmap
import re
import unicodedata
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from appo.core.extras import import_extra
from appo.tools.search.corpus import Passage

_MANIFEST = "manifest.json"
_PASSAGES = "passages.jsonl"
_OFFSETS = "offsets.npy"

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Chinese characters, which are written without spaces."""
_TERM = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")
_POSSESSIVE = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]s\\b")
_ACCENTS = re.compile("[\u0300-\u036f]+")


def terms(text: str) -> list[str]:
    """The words of a text, each as often as it stands there.

    Case, accents and an English possessive make no difference; a kana or Chinese character is a word of its own.
    """
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
    return _TERM.findall(_POSSESSIVE.sub("", text))


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: of the passage.
        text: of the passage.
        score: how well it fits, positive; comparable within one index.
    """

    id: str
    text: str
    score: float


def build_index(folder: Path, passages: Iterable[Passage], k1: float, b: float) -> None:
    """Writes an index.

    The score of a passage `d` for a query is that of Lucene, summed over the words `t` of the query:
    ``log(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f_td / (f_td + k1 * (1 - b + b * |d| / mean |d|))``
    with `N` passages, `n_t` of which have the word, which stands `f_td` times in `d`.

    Args:
        folder: to write to, empty.
        passages: to search in, at least one.
        k1: how slowly a word counts less the more often it stands in a passage, positive.
        b: how much long passages are held back, in [0, 1].

    Raises:
        ValueError: if there is no passage, or two of them have one id.
        ImportError: if bm25s is not installed.
    """
    bm25s = _import_bm25s()
    vocabulary: dict[str, int] = {}
    term_ids: list[array[int]] = []
    ids: set[str] = set()
    offsets = array("q", [0])
    with (folder / _PASSAGES).open("wb") as file:
        for passage in passages:
            if passage.id in ids:
                raise ValueError(f"ids must be unique in the corpus, got {passage.id!r} more than once")
            ids.add(passage.id)
            term_ids.append(array("i", [vocabulary.setdefault(t, len(vocabulary)) for t in terms(passage.text)]))
            file.write(json.dumps([passage.id, passage.text], ensure_ascii=False).encode(errors="replace") + b"\n")
            offsets.append(file.tell())
    if not vocabulary:
        raise ValueError("the corpus must hold at least one passage with a word in it, got none")
    np.save(folder / _OFFSETS, np.array(offsets))
    bm25 = bm25s.BM25(k1=k1, b=b, method="lucene")
    bm25.index((term_ids, vocabulary), create_empty_token=False, show_progress=False)
    bm25.save(folder, show_progress=False)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"num_passages": len(term_ids), "sizes": sizes}, indent=2) + "\n")


class PassageIndex:
    """An index that `build_index` wrote; any number of threads may ask it.

    Args:
        folder: of the index.

    Raises:
        ValueError: if a file of the index is missing or not as it was written.
        ImportError: if bm25s is not installed.
    """

    def __init__(self, folder: Path) -> None:
        bm25s = _import_bm25s()
        self.num_passages = _check_files(folder)
        self._bm25 = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        self._offsets = np.load(folder / _OFFSETS, mmap_mode="r")
        with (folder / _PASSAGES).open("rb") as file:
            self._passages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def rank(self, query: str, limit: int) -> list[Hit]:
        """The passages that share a word with the query, best first; those that score alike in the corpus's order.

        Args:
            query: any text.
            limit: most passages to return, at least 1.
        """
        vocabulary = self._bm25.vocab_dict
        term_ids = [vocabulary[term] for term in terms(query) if term in vocabulary]
        if not term_ids:
            return []
        scores = self._bm25.get_scores_from_ids(term_ids)
        # bm25s's own selection leaves the order of equal scores to the machine.
        num_others = max(self.num_passages - limit, 0)
        threshold = np.partition(scores, num_others)[num_others]
        candidates = np.flatnonzero((scores >= threshold) & (scores > 0.0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:limit]
        return [self._hit(int(position), float(scores[position])) for position in best]

    def _hit(self, position: int, score: float) -> Hit:
        start, end = self._offsets[position : position + 2]
        id, text = json.loads(self._passages[start:end])
        return Hit(id, text, score)


def _import_bm25s() -> Any:
    bm25s = import_extra("bm25s", "BM25Search", "search")
    # It asks for its debugging messages to be shown.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def _check_files(folder: Path) -> int:
    """Compares the files with what was written; returns the number of passages.

    Raises:
        ValueError: if they differ.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["sizes"]}
        if sizes != manifest["sizes"]:
            changed = sorted(name for name in sizes if sizes[name] != manifest["sizes"][name])
            raise ValueError(f"the size of {', '.join(changed)} has changed")
        return int(manifest["num_passages"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the BM25 index in {folder} is damaged ({error}); delete that folder, and it is built anew"
        ) from error
