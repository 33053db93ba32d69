"""Searches that were made before are not made again."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from appo.core.foreign_json import parse_json
from appo.tools.base import ToolError
from appo.tools.search.store import SearchStore, normalize_query
from appo.tools.search.tool import SEARCH_BACKENDS, SearchBackend

log = logging.getLogger(__name__)

_PAGE = re.compile(r"^Page \d+: ", re.MULTILINE)
_NOTHING_FOUND = "No search results found."
_IMPORTED = "imported"
"""Identity of imported answers where no back end stands behind the cache."""


@SEARCH_BACKENDS.register
@dataclass(eq=False)
class CachedSearch(SearchBackend):
    """Remembers what a back end has found, in an SQLite file that processes and runs share.

    Two queries are one if they differ in case, quotes, white space or the words ``search query:`` alone. Answers belong
    to the back end with its options: another one does not get them. Failures are not remembered; that nothing was found
    is. Threads that ask the same at once wait for one search.

    Without a back end the cache replays: whoever found an answer, it counts, the latest first.
    """

    path: str
    """The SQLite file, on a disk of this machine; made if it is not there."""
    backend: SearchBackend | None = None
    """What is asked where the cache has no answer; `null`: nothing is, the cache is replayed."""
    on_miss: Literal["error", "empty"] = "error"
    """What a query that has no answer comes to without a back end: a failure, or no results."""
    max_mb: float | None = None
    """MiB of queries and passages; beyond it those that were not used for longest are dropped. `null`: no limit."""
    max_age_s: float | None = None
    """Seconds for which an answer counts; `null`: no limit."""
    import_json: str | None = None
    """JSON file of answers to begin with, as the authors' release has them: an object from the query to the passages,
    lines that begin with ``Page 1: ``, ``Page 2: `` and so on."""

    _store: SearchStore | None = field(default=None, init=False, repr=False)
    _searches: dict[tuple[str, int], Future[list[str]]] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_mb", "max_age_s"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        if isinstance(self.backend, CachedSearch):
            raise ValueError("backend must not be a cache itself, got CachedSearch")

    @property
    def identity(self) -> str:
        return self.backend.identity if self.backend is not None else f"CachedSearch({self.path!r})"

    def start(self) -> None:
        """Opens the file, imports answers, and starts the back end.

        Raises:
            FileNotFoundError: if the file to import is missing.
            ValueError: if one of the files is something else.
        """
        if self._store is not None:
            return
        if self.backend is not None:
            self.backend.start()
        max_bytes = int(self.max_mb * 2**20) if self.max_mb is not None else None
        store = SearchStore(Path(self.path), max_bytes, self.max_age_s)
        try:
            if self.import_json is not None:
                self._import(store, Path(self.import_json))
        except BaseException:
            store.close()
            raise
        self._store = store

    def stop(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        if self.backend is not None:
            self.backend.stop()

    def search(self, query: str, limit: int) -> list[str]:
        store = self._store
        if store is None:
            raise RuntimeError("CachedSearch must be started before it is searched")
        backend = self.backend
        if backend is None:
            return self._replay(store, query, limit)
        identity = backend.identity

        def find() -> list[str]:
            passages = store.find(query, identity, limit)
            if passages is None:
                passages = backend.search(query, limit)
                store.store(query, identity, limit, passages)
            return passages

        return self._once((normalize_query(query), limit), find)

    def _replay(self, store: SearchStore, query: str, limit: int) -> list[str]:
        passages = store.find(query, None, limit)
        if passages is None and self.on_miss == "error":
            raise ToolError("The search failed: the answer to this query is not at hand.")
        return passages or []

    def _once(self, key: tuple[str, int], find: Callable[[], list[str]]) -> list[str]:
        """What `find` returns or raises; threads that come with the same key meanwhile share it."""
        with self._lock:
            running = self._searches.get(key)
            if running is None:
                own = self._searches[key] = Future()
        if running is not None:
            return running.result()
        try:
            passages = find()
        except BaseException as error:
            own.set_exception(error)
            raise
        else:
            own.set_result(passages)
            return passages
        finally:
            with self._lock:
                del self._searches[key]

    def _import(self, store: SearchStore, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"import_json must name a file, got {str(path)!r}, which is none")
        content = path.read_bytes()
        identity = self.backend.identity if self.backend is not None else _IMPORTED
        num_added = store.add(hashlib.sha256(content).hexdigest(), identity, _released_entries(content, path))
        log.info("imported %d answers from %s", num_added, path)


def _released_entries(content: bytes, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Queries and passages of a cache of the authors' release.

    Raises:
        ValueError: if the content is something else.
    """
    try:
        entries = parse_json(content)
    except ValueError as error:
        raise ValueError(f"import_json must name a JSON file, got {str(path)!r}: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
        raise ValueError(f"import_json must hold an object from queries to texts, got something else in {str(path)!r}")
    for query, text in entries.items():
        passages = [] if text.strip() == _NOTHING_FOUND else _PAGE.split(text)
        yield query, [passage.strip() for passage in passages if passage.strip()]
