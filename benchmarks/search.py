"""Measures `BM25Search` behind `SearchTool`: queries a second, memory, and the time to load an index.

The corpus is generated: passages of 60 to 120 words, the n-th most frequent of 200,000 words with probability
proportional to 1 / n. A query is eight words of a passage in random order, which is to be found first. The index is
built in one process and used in another, so that its memory is that of the use alone; every file has been read before
(by the one that wrote it), as in every start of a run but the machine's first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from appo.tools import BM25Search, SearchTool

NUM_WORDS = 200_000
QUERY_WORDS = 8
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Build:
    """What building took; memory is the process's largest."""

    seconds: float
    peak_mib: float
    index_mib: float


@dataclass(frozen=True)
class Speed:
    """Queries from so many threads."""

    threads: int
    queries_per_s: float
    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Use:
    """What using an index took; memory is beyond what the interpreter had with everything imported but bm25s."""

    load_s: float
    loaded_mib: float
    searched_mib: float
    found_first: float
    speeds: list[Speed]


def words() -> list[str]:
    """Pronounceable words, all different, short ones first."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    found: list[str] = []
    level = [""]
    while len(found) < NUM_WORDS:
        level = [word + syllable for word in level for syllable in syllables]
        found += level
    return found[:NUM_WORDS]


def write_corpus(path: Path, num_passages: int) -> None:
    """Writes the passages as JSON lines."""
    generator = np.random.default_rng(0)
    probabilities = 1.0 / np.arange(1, NUM_WORDS + 1)
    lengths = generator.integers(60, 121, num_passages)
    drawn = generator.choice(NUM_WORDS, size=int(lengths.sum()), p=probabilities / probabilities.sum())
    vocabulary = np.array(words())
    with path.open("w") as file:
        for number, word_ids in enumerate(np.split(drawn, np.cumsum(lengths)[:-1])):
            file.write(json.dumps({"id": number, "text": " ".join(vocabulary[word_ids])}) + "\n")


def queries(corpus: Path, num_queries: int) -> Iterator[tuple[str, str]]:
    """Queries, each with the text it was made of, from passages all over the corpus."""
    generator = np.random.default_rng(1)
    texts = [json.loads(line)["text"] for line in corpus.open()]
    for position in generator.integers(0, len(texts), num_queries):
        text = texts[position]
        yield " ".join(generator.choice(text.split(), QUERY_WORDS, replace=False)), text


def memory_mib(field: str) -> float:
    """A line of this process's memory status, such as ``VmRSS``."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def build(corpus: Path) -> Build:
    """Builds the index in this process, which must be new."""
    begin = time.perf_counter()
    BM25Search(str(corpus)).start()
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in corpus.parent.glob("*.bm25/*/*"))
    return Build(round(seconds, 2), round(memory_mib("VmHWM")), round(size / 2**20))


def use(corpus: Path, num_queries: int, threads: list[int], rounds: int) -> Use:
    """Loads the index in this process, which must be new, and searches."""
    before = memory_mib("VmRSS")
    tool = SearchTool(BM25Search(str(corpus)), max_results=10)
    begin = time.perf_counter()
    tool.start()
    load_s = time.perf_counter() - begin
    loaded_mib = memory_mib("VmRSS") - before
    # Questions come from elsewhere: their texts must not count as memory of the index.
    asked = in_new_process(lines_of_queries, corpus, num_queries)
    begin_mib = memory_mib("VmRSS")
    speeds = [speed(tool, [query for query, _ in asked], number, rounds) for number in threads]
    searched_mib = loaded_mib + memory_mib("VmRSS") - begin_mib
    found = [tool(query).split("\n")[0] == text[:1000] for query, text in asked]
    tool.stop()
    return Use(round(load_s, 2), round(loaded_mib), round(searched_mib), statistics.mean(found), speeds)


def lines_of_queries(corpus: Path, num_queries: int) -> list[tuple[str, str]]:
    """As `queries`, all at once."""
    return list(queries(corpus, num_queries))


def speed(tool: SearchTool, asked: list[str], num_threads: int, rounds: int) -> Speed:
    """Asks all queries `rounds` times, after one time that does not count; takes the median of the rounds."""

    def ask(query: str) -> float:
        begin = time.perf_counter()
        tool(query)
        return time.perf_counter() - begin

    seconds, durations = [], []
    with ThreadPoolExecutor(num_threads) as pool:
        for round_number in range(rounds + 1):
            begin = time.perf_counter()
            took = list(pool.map(ask, asked))
            if round_number:
                seconds.append(time.perf_counter() - begin)
                durations += took
    return Speed(
        num_threads,
        round(len(asked) / statistics.median(seconds)),
        round(1000 * statistics.median(durations), 2),
        round(1000 * statistics.quantiles(durations, n=20)[-1], 2),
    )


def in_new_process(function: Callable[..., Outcome], *arguments: object) -> Outcome:
    """Calls a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.search", description="BM25 search over a generated corpus.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of search.json")
    parser.add_argument("--passages", type=int, default=100_000, help="passages of the corpus")
    parser.add_argument("--queries", type=int, default=1000, help="queries of a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8], help="threads that search at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus, options.passages)
        corpus_mib = round(corpus.stat().st_size / 2**20)
        built = in_new_process(build, corpus)
        used = in_new_process(use, corpus, options.queries, options.threads, options.rounds)
    print(f"{options.passages:,} passages, {corpus_mib} MiB; {used.found_first:.1%} of queries find theirs first")
    print(f"build: {built.seconds:.1f} s, at most {built.peak_mib:.0f} MiB; index of {built.index_mib:.0f} MiB")
    print(f"load:  {used.load_s:.2f} s; {used.loaded_mib:.0f} MiB, {used.searched_mib:.0f} MiB after searching")
    print(f"\n{'threads':>7} {'queries/s':>10} {'median ms':>10} {'95 % ms':>8}")
    for row in used.speeds:
        print(f"{row.threads:7} {row.queries_per_s:10,} {row.median_ms:10.2f} {row.p95_ms:8.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "passages": options.passages,
        "corpus_mib": corpus_mib,
        "queries": options.queries,
        "rounds": options.rounds,
        "bm25s": importlib.metadata.version("bm25s"),
        "numpy": np.__version__,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "build": asdict(built),
        "use": asdict(used),
    }
    (options.out / "search.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
