"""Search in a corpus of one's own, by BM25."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from appo.tools.search.corpus import Columns, read_passages
from appo.tools.search.index import Hit, PassageIndex, build_index
from appo.tools.search.tool import SEARCH_BACKENDS, SearchBackend

log = logging.getLogger(__name__)

_FORMAT = 1
"""Version of the index; raised whenever what stands in one, or how text becomes words, changes."""


@SEARCH_BACKENDS.register
@dataclass(eq=False)
class BM25Search(SearchBackend):
    """Ranks the passages of a file by BM25.

    The index is built at the first start and kept in a folder under a name that depends on the content of the file and
    on the options, so that a changed corpus gets a new one. It is mapped into memory, and shared by all processes that
    use it; of several that start at once, one builds it and the others wait. Needs the extra ``appo[search]``.
    """

    corpus: str
    """File of passages: ``.jsonl`` with an object a line, ``.csv`` or ``.tsv`` with a header, or ``.parquet``."""
    text_key: str = "text"
    """Column of the text."""
    title_key: str | None = None
    """Column of the title, which is searched and shown in front of the text; `null`: there is none."""
    id_key: str | None = None
    """Column of the id, a text or a number unique in the file; `null`: the row number."""
    index_folder: str | None = None
    """Folder of indexes; `null`: ``<corpus>.bm25`` beside the corpus."""
    k1: float = 1.5
    """How slowly a word counts less the more often it stands in a passage; positive."""
    b: float = 0.75
    """How much long passages are held back, in [0, 1]."""

    _index: PassageIndex | None = field(default=None, init=False, repr=False)
    _key: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.k1 > 0.0:
            raise ValueError(f"k1 must be positive, got {self.k1}")
        if not 0.0 <= self.b <= 1.0:
            raise ValueError(f"b must lie in [0, 1], got {self.b}")

    @property
    def identity(self) -> str:
        if self._key is None:
            raise RuntimeError("BM25Search must be started before its identity is known")
        return f"BM25Search({self._key})"

    def start(self) -> None:
        """Loads the index, and builds it before if there is none yet.

        Raises:
            FileNotFoundError: if the corpus is missing.
            ValueError: if the corpus cannot be read as the options say, or the index is damaged.
            ImportError: if the extra ``appo[search]`` is not installed.
        """
        if self._index is not None:
            return
        path = Path(self.corpus)
        if not path.is_file():
            raise FileNotFoundError(f"corpus must name a file, got {self.corpus!r}, which is none")
        root = Path(self.index_folder if self.index_folder is not None else f"{path}.bm25")
        key = self._content_key(path)
        if not (root / key).is_dir():
            self._build(path, root, key)
        self._index, self._key = PassageIndex(root / key), key

    def stop(self) -> None:
        self._index = None

    def search(self, query: str, limit: int) -> list[str]:
        return [hit.text for hit in self.rank(query, limit)]

    def rank(self, query: str, limit: int) -> list[Hit]:
        """The passages that share a word with the query, with ids and scores, best first.

        Args:
            query: any text.
            limit: most passages to return, at least 1.
        """
        if self._index is None:
            raise RuntimeError("BM25Search must be started before it is searched")
        return self._index.rank(query, limit)

    def _content_key(self, path: Path) -> str:
        options = {
            "format": _FORMAT,
            "kind": path.suffix,
            "keys": [self.text_key, self.title_key, self.id_key],
            "k1": self.k1,
            "b": self.b,
        }
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(json.dumps(options).encode())
        return digest.hexdigest()[:24]

    def _build(self, path: Path, root: Path, key: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if (root / key).is_dir():  # another process has built it meanwhile
                return
            log.info("building the BM25 index of %s in %s", path, root)
            unfinished = root / f"{key}.unfinished"
            # Left by a process that was killed: the lock is free.
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                columns = Columns(self.text_key, self.title_key, self.id_key)
                build_index(unfinished, read_passages(path, columns), self.k1, self.b)
            except BaseException:
                shutil.rmtree(unfinished)
                raise
            unfinished.rename(root / key)
