from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appo.environments.search import WorldSearch
from appo.tools import CachedSearch, SearchBackend, SearchTool, ToolError
from appo.tools.search.store import normalize_query
from tests.copied_processes import run

RELEASED = Path(__file__).parents[3] / "../shared/data/appo/search_cache.json"


@dataclass
class Counted(SearchBackend):
    """Finds as many passages as asked for, up to `size`, and counts the searches."""

    size: int = 5
    name: str = "page"
    asked: list[tuple[str, int]] = field(default_factory=list, repr=False)
    failures: int = field(default=0, repr=False)
    is_started: bool = field(default=False, repr=False)

    def start(self):
        self.is_started = True

    def stop(self):
        self.is_started = False

    def search(self, query, limit):
        self.asked.append((query, limit))
        if self.failures:
            self.failures -= 1
            raise ToolError("The service is down.")
        return [f"{self.name} {number} of {query}" for number in range(min(limit, self.size))]


@pytest.fixture
def cached(tmp_path):
    """Starts a cache in one file over a back end; stops it after the test."""
    caches = []

    def start(backend=None, **options):
        caches.append(CachedSearch(str(tmp_path / "searches.sqlite"), backend, **options))
        caches[-1].start()
        return caches[-1]

    yield start
    for cache in caches:
        cache.stop()


def stored(tmp_path) -> list[str]:
    with sqlite3.connect(tmp_path / "searches.sqlite") as database:
        return [query for (query,) in database.execute("SELECT query FROM entries ORDER BY query")]


def test_an_answer_is_found_once(cached):
    backend = Counted()
    cache = cached(backend)
    first = cache.search("Who?", 2)
    assert first == ["page 0 of Who?", "page 1 of Who?"]
    assert cache.search("Who?", 2) == first
    assert backend.asked == [("Who?", 2)]


def test_an_answer_outlives_the_run(cached):
    cached(Counted()).search("Who?", 2)
    later = Counted()
    assert cached(later).search("who?", 2) == ["page 0 of Who?", "page 1 of Who?"]
    assert later.asked == []


@pytest.mark.parametrize(
    "query", ["search query: Ürban  Myth", "SEARCH QUERY:ürban myth", '  "Ürban" Myth ', "ürban\nmyth"]
)
def test_queries_that_differ_in_form_alone_are_one(query):
    assert normalize_query(query) == "ürban myth"


@pytest.mark.parametrize("query", ["urban myth", "ürban myth?", "research query: ürban myth"])
def test_queries_that_differ_in_words_are_not_one(query):
    assert normalize_query(query) != "ürban myth"


def test_fewer_passages_are_cut_from_more_and_more_are_searched_anew(cached):
    backend = Counted(size=5)
    cache = cached(backend)
    cache.search("q", 3)
    assert cache.search("q", 2) == ["page 0 of q", "page 1 of q"]
    assert len(cache.search("q", 4)) == 4
    assert len(cache.search("q", 10)) == 5
    # All there is was found: a higher limit cannot find more.
    assert len(cache.search("q", 20)) == 5
    assert backend.asked == [("q", 3), ("q", 4), ("q", 10)]


def test_that_nothing_was_found_is_remembered_but_no_failure(cached):
    backend = Counted(size=0, failures=1)
    cache = cached(backend)
    with pytest.raises(ToolError, match="The service is down"):
        cache.search("q", 3)
    assert cache.search("q", 3) == []
    assert cache.search("q", 3) == []
    assert len(backend.asked) == 2


def test_another_back_end_does_not_get_the_answers(cached):
    cached(Counted(name="page")).search("q", 1)
    assert cached(Counted(name="sheet")).search("q", 1) == ["sheet 0 of q"]
    assert cached(Counted(name="page")).search("q", 1) == ["page 0 of q"]


def test_without_a_back_end_the_latest_answer_of_any_is_replayed(cached):
    cached(Counted(name="page")).search("q", 1)
    cached(Counted(name="sheet")).search("q", 1)
    assert cached().search("Q", 1) == ["sheet 0 of q"]


def test_a_miss_without_a_back_end_is_a_failure_or_no_results(cached):
    with pytest.raises(ToolError, match="the answer to this query is not at hand"):
        cached().search("q", 1)
    assert cached(on_miss="empty").search("q", 1) == []


def test_what_was_not_used_for_longest_is_dropped_first(cached, tmp_path):
    cache = cached(Counted(size=1), max_mb=3.5 * 1000 / 2**20)
    # An entry has 1000 bytes: 493 of the query, and 507 of the list with the passage; three have room.
    queries = [letter * 493 for letter in "abcd"]
    for query in queries[:3]:
        cache.search(query, 2)
    with sqlite3.connect(tmp_path / "searches.sqlite") as database:
        assert database.execute("SELECT size FROM entries").fetchall() == [(1000,)] * 3
    cache.search(queries[0], 2)
    cache.search(queries[3], 2)
    assert stored(tmp_path) == [queries[0], queries[2], queries[3]]


def test_the_size_is_kept_over_replacements_and_runs(cached, tmp_path):
    for limit in (1, 2, 3, 4):
        cached(Counted(), max_mb=1.0).search("q", limit)
    with sqlite3.connect(tmp_path / "searches.sqlite") as database:
        total, of_entries = database.execute("SELECT (SELECT size FROM total), sum(size) FROM entries").fetchone()
    assert total == of_entries > 0


def test_an_answer_that_is_too_old_does_not_count(cached, tmp_path):
    backend = Counted()
    cache = cached(backend, max_age_s=100.0)
    cache.search("old", 1)
    cache.search("new", 1)
    with sqlite3.connect(tmp_path / "searches.sqlite") as database:
        database.execute("UPDATE entries SET stored_at = stored_at - 101 WHERE query = 'old'")
    for query in ("new", "old", "old"):
        cache.search(query, 1)
    assert [query for query, _ in backend.asked] == ["old", "new", "old"]


def test_what_is_too_old_is_dropped_at_the_start(cached, tmp_path):
    cached(Counted()).search("old", 1)
    with sqlite3.connect(tmp_path / "searches.sqlite") as database:
        database.execute("UPDATE entries SET stored_at = stored_at - 101")
    cached(Counted(), max_age_s=100.0)
    assert stored(tmp_path) == []


def test_threads_that_ask_the_same_wait_for_one_search(cached):
    second_search = threading.Event()
    answers = []

    @dataclass
    class Slow(Counted):
        def search(self, query, limit):
            passages = super().search(query, limit)
            if len(self.asked) > 1:
                second_search.set()
                return passages
            threads.append(threading.Thread(target=lambda: answers.append(cache.search("Q ", 2))))
            threads[0].start()
            assert not second_search.wait(0.2)
            return passages

    threads = []
    cache = cached(Slow())
    assert cache.search("q", 2) == ["page 0 of q", "page 1 of q"]
    threads[0].join(10.0)
    assert answers == [["page 0 of q", "page 1 of q"]]


def test_threads_that_wait_for_a_search_that_fails_fail_with_it(cached):
    failures = []

    def ask():
        try:
            cache.search("q", 2)
        except ToolError as error:
            failures.append(str(error))

    @dataclass
    class Failing(Counted):
        def search(self, query, limit):
            self.asked.append((query, limit))
            if len(self.asked) == 1:
                threads.append(threading.Thread(target=ask))
                threads[0].start()
                threads[0].join(0.2)
            raise ToolError("The service is down.")

    threads = []
    backend = Failing()
    cache = cached(backend)
    ask()
    threads[0].join(10.0)
    assert failures == ["The service is down."] * 2
    assert len(backend.asked) == 1


def search_all() -> None:
    """Asks a cache for the facts of a world, from some number on."""
    cache = CachedSearch(sys.argv[1], WorldSearch(), max_mb=50.0)
    world = cache.backend
    facts = [fact.sentence for fact in world.world.facts][:120]
    cache.start()
    for number in range(len(facts)):
        query = facts[(number + int(os.environ["FIRST"])) % len(facts)]
        assert cache.search(query, 2) == world.search(query, 2), query
    cache.stop()


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "new" / "searches.sqlite"
    done = run(search_all, [str(path)], *({"FIRST": first} for first in ("0", "0", "40", "80")))
    assert done.returncode == 0, done.output
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        num_entries, size, total = database.execute(
            "SELECT count(*), sum(size), (SELECT size FROM total) FROM entries"
        ).fetchone()
    assert num_entries == 120
    assert size == total


def test_caches_that_start_at_once_make_one_file(tmp_path):
    barrier = threading.Barrier(8)

    def start(path):
        cache = CachedSearch(str(path), Counted())
        barrier.wait(30.0)
        cache.start()
        cache.search("q", 1)
        cache.stop()

    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            list(pool.map(start, [tmp_path / f"{number}.sqlite"] * 8))


def write_released(tmp_path, entries) -> str:
    path = tmp_path / "released.json"
    path.write_text(json.dumps(entries))
    return str(path)


def test_answers_of_the_release_are_imported_as_passages(cached, tmp_path):
    path = write_released(
        tmp_path,
        {"search query: Who?": "Page 1: One. Page 9: still one.\nPage 2: Two.", "None": "No search results found."},
    )
    cache = cached(import_json=path)
    assert cache.search("who?", 10) == ["One. Page 9: still one.", "Two."]
    assert cache.search("Who?", 1) == ["One. Page 9: still one."]
    assert cache.search("none", 10) == []


def test_imported_answers_count_as_those_of_the_back_end_and_replace_none(cached, tmp_path):
    backend = Counted()
    cached(backend).search("known", 1)
    cache = cached(backend, import_json=write_released(tmp_path, {"known": "Page 1: A", "new": "Page 1: B"}))
    assert cache.search("new", 3) == ["B"]
    assert cache.search("known", 1) == ["page 0 of known"]
    assert backend.asked == [("known", 1)]


def test_a_file_is_imported_once(cached, tmp_path, caplog):
    caplog.set_level("INFO", logger="appo")
    path = write_released(tmp_path, {"a": "Page 1: A", "b": "Page 1: B"})
    cached(import_json=path).stop()
    with sqlite3.connect(tmp_path / "searches.sqlite") as database:
        database.execute("DELETE FROM entries WHERE query = 'a'")
    cached(import_json=path)
    assert stored(tmp_path) == ["b"]
    cached(import_json=write_released(tmp_path, {"a": "Page 1: A", "c": "Page 1: C"}))
    assert stored(tmp_path) == ["a", "b", "c"]
    assert [record.getMessage().split(" from ")[0] for record in caplog.records] == [
        "imported 2 answers",
        "imported 0 answers",
        "imported 2 answers",
    ]


@pytest.mark.skipif(not RELEASED.is_file(), reason="needs the release's search cache in ../shared/data")
def test_every_answer_of_the_release_comes_back_as_it_was(cached):
    released = json.loads(RELEASED.read_text())
    backend = cached(import_json=str(RELEASED))
    tool = SearchTool(backend, max_results=10, max_passage_chars=2000, passage_format="Page {number}: {passage}")
    assert len(released) == 1000
    for query, text in released.items():
        expected = [" ".join(line.split()) for line in text.splitlines()]
        for asked in (query, query.removeprefix("search query: ").upper()):
            answer = tool(asked)
            if text == "No search results found.":
                assert answer == "No results found."
            else:
                assert answer.splitlines() == expected


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be read" * 100, b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "searches.sqlite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must name a cache of searches, got '.*' \(.*\); delete the file"):
        CachedSearch(str(path)).start()
    assert path.read_bytes() == content


def test_a_database_of_another_kind_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "searches.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE entries (x)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is a database of another kind or version"):
        CachedSearch(str(path)).start()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "import_json must name a JSON file, got '.*released.json': "),
        ("[]", "import_json must hold an object from queries to texts"),
        ('{"a": 1}', "import_json must hold an object from queries to texts"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(tmp_path, content, message):
    path = tmp_path / "released.json"
    path.write_text(content)
    cache = CachedSearch(str(tmp_path / "searches.sqlite"), import_json=str(path))
    with pytest.raises(ValueError, match=message):
        cache.start()
    path.write_text('{"a": "Page 1: A"}')
    cache.start()
    assert cache.search("a", 1) == ["A"]
    cache.stop()


def test_a_missing_file_to_import_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="import_json must name a file, got 'nowhere'"):
        CachedSearch(str(tmp_path / "searches.sqlite"), import_json="nowhere").start()


def test_the_back_end_starts_and_stops_with_the_cache(cached):
    backend = Counted()
    cache = cached(backend)
    assert backend.is_started
    cache.stop()
    assert not backend.is_started
    with pytest.raises(RuntimeError, match="must be started before it is searched"):
        cache.search("q", 1)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"max_mb must be positive, got 0.0"):
        CachedSearch("x", max_mb=0.0)
    with pytest.raises(ValueError, match=r"max_age_s must be positive, got -1.0"):
        CachedSearch("x", max_age_s=-1.0)
    with pytest.raises(ValueError, match="backend must not be a cache itself"):
        CachedSearch("x", CachedSearch("y"))
