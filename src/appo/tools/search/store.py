"""Passages found earlier, in an SQLite file that processes share."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock

_APPLICATION_ID = 0x4150504F
"""``APPO``: marks the file as one of ours."""
_VERSION = 1
_BUSY_S = 60.0
"""How long to wait for another process that writes."""

_SCHEMA = f"""
CREATE TABLE entries (
    query TEXT NOT NULL, identity TEXT NOT NULL, passages TEXT NOT NULL, max_results INTEGER, size INTEGER NOT NULL,
    stored_at REAL NOT NULL, used_at REAL NOT NULL, PRIMARY KEY (query, identity)
) WITHOUT ROWID;
CREATE INDEX entries_by_use ON entries (used_at);
CREATE TABLE imports (digest TEXT NOT NULL, identity TEXT NOT NULL, PRIMARY KEY (digest, identity)) WITHOUT ROWID;
CREATE TABLE total (size INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER entry_comes AFTER INSERT ON entries BEGIN UPDATE total SET size = size + new.size; END;
CREATE TRIGGER entry_goes AFTER DELETE ON entries BEGIN UPDATE total SET size = size - old.size; END;
CREATE TRIGGER entry_changes AFTER UPDATE OF size ON entries
    BEGIN UPDATE total SET size = size + new.size - old.size; END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""

_REPLACE = (
    "DO UPDATE SET passages = excluded.passages, max_results = excluded.max_results, size = excluded.size, "
    "stored_at = excluded.stored_at, used_at = excluded.used_at"
)
_KEEP = "DO NOTHING"

_PREFIX = re.compile(r"^\s*search query:", re.IGNORECASE)
"""What a policy of the authors' release writes in front of many a query."""


def normalize_query(query: str) -> str:
    """The query without what makes no difference: case, quotes, white space, the words ``search query:``."""
    text = unicodedata.normalize("NFKC", _PREFIX.sub("", query)).casefold()
    return " ".join(text.replace('"', " ").split())


class SearchStore:
    """Passages by query and by the identity of what found them; for any number of threads and processes.

    The file is in WAL mode, for which it must lie on a disk of this machine.

    Args:
        path: of the file; made if it is not there.
        max_bytes: of queries and passages together; beyond it those that were not used for longest are dropped. None
            sets no limit.
        max_age_s: after which an entry is no longer an answer; None sets no limit.

    Raises:
        ValueError: if the file is something else.
    """

    def __init__(self, path: Path, max_bytes: int | None = None, max_age_s: float | None = None) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # SQLite does not wait for another process where the mode of the file changes.
            with FileLock(f"{path}.lock"):
                self._prepare()
        except BaseException as error:
            self._database.close()
            if type(error) is sqlite3.DatabaseError:  # the file's fault; its subclasses tell of locks and rights
                raise ValueError(
                    f"path must name a cache of searches, got {str(path)!r} ({error}); delete the file to begin anew"
                ) from error
            raise

    def _prepare(self) -> None:
        """Sets the connection up, and the file if it is new.

        Raises:
            ValueError: if the file is a database of another kind.
        """
        ((application_id,),) = self._database.execute("PRAGMA application_id")
        ((version,),) = self._database.execute("PRAGMA user_version")
        is_new = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        if not is_new and (application_id, version) != (_APPLICATION_ID, _VERSION):
            raise ValueError(
                f"path must name a cache of searches of version {_VERSION}, got {str(self.path)!r}, which is a "
                "database of another kind or version"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        if is_new:
            self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        self._database.execute("DELETE FROM entries WHERE stored_at <= ?", (self._oldest(),))

    def close(self) -> None:
        """Closes the file; does nothing if it is closed."""
        with self._lock:
            self._database.close()

    def find(self, query: str, identity: str | None, limit: int) -> list[str] | None:
        """The passages for a query; None if they are not known.

        Args:
            query: normalized or not.
            identity: of what is asked; None takes what anyone found, the latest first.
            limit: most passages to return; an entry that was cut at fewer than these is not one.
        """
        key = normalize_query(query)
        with self._lock:
            found = self._database.execute(
                "SELECT identity, passages FROM entries WHERE query = ? AND (? IS NULL OR identity = ?) "
                "AND (max_results IS NULL OR max_results >= ?) AND stored_at > ? ORDER BY stored_at DESC LIMIT 1",
                (key, identity, identity, limit, self._oldest()),
            ).fetchone()
            if found is None:
                return None
            if self.max_bytes is not None:
                self._database.execute(
                    "UPDATE entries SET used_at = ? WHERE query = ? AND identity = ?", (time.time(), key, found[0])
                )
        passages: list[str] = json.loads(found[1])
        return passages[:limit]

    def store(self, query: str, identity: str, limit: int, passages: Sequence[str]) -> None:
        """Keeps what a search has found, in place of what is known.

        Args:
            query: normalized or not.
            identity: of what was asked.
            limit: most passages that were asked for.
            passages: found; none is an answer as well.
        """
        # What was not cut at the limit is all that there is.
        max_results = limit if len(passages) >= limit else None
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._put(query, identity, max_results, passages, _REPLACE)
            self._evict()

    def add(self, digest: str, identity: str, entries: Iterable[tuple[str, Sequence[str]]]) -> int:
        """Adds complete answers from elsewhere, once; those known already stay.

        Args:
            digest: of the place they come from: the same one is not added again.
            identity: of what they count as an answer of.
            entries: queries and their passages.

        Returns:
            How many were added.
        """
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            new = self._database.execute("INSERT OR IGNORE INTO imports VALUES (?, ?)", (digest, identity)).rowcount
            if not new:
                return 0
            added = sum(self._put(query, identity, None, passages, _KEEP) for query, passages in entries)
            self._evict()
            return added

    def _put(
        self, query: str, identity: str, max_results: int | None, passages: Sequence[str], on_conflict: str
    ) -> int:
        key, text, now = normalize_query(query), json.dumps(list(passages), ensure_ascii=False), time.time()
        size = len(key.encode(errors="replace")) + len(text.encode(errors="replace"))
        return self._database.execute(
            f"INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (query, identity) {on_conflict}",
            (key, identity, text, max_results, size, now, now),
        ).rowcount

    def _evict(self) -> None:
        if self.max_bytes is None:
            return
        while self._database.execute("SELECT size FROM total").fetchone()[0] > self.max_bytes:
            self._database.execute(
                "DELETE FROM entries WHERE (query, identity) IN "
                "(SELECT query, identity FROM entries ORDER BY used_at LIMIT 1)"
            )

    def _oldest(self) -> float:
        """Entries stored at this time or before are too old."""
        return time.time() - self.max_age_s if self.max_age_s is not None else -math.inf
