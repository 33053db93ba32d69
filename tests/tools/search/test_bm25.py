from __future__ import annotations

import json
import logging
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from appo.tools import BM25Search
from appo.tools.search.index import terms
from tests.copied_processes import run

HOTPOT = Path(__file__).parents[3] / "../shared/data/hotpot/hotpot_distractor_sample100.jsonl"


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def started(tmp_path):
    """Starts a back end over texts."""

    def start(texts, **options):
        backend = BM25Search(str(write_corpus(tmp_path / "corpus.jsonl", texts)), **options)
        backend.start()
        return backend

    return start


def bm25_scores(texts: list[str], query: str, k1: float, b: float) -> list[float]:
    """The definition, in float64."""
    counts = [Counter(terms(text)) for text in texts]
    mean_length = sum(count.total() for count in counts) / len(texts)
    scores = [0.0] * len(texts)
    for term in terms(query):
        num_holders = sum(term in count for count in counts)
        idf = math.log(1 + (len(texts) - num_holders + 0.5) / (num_holders + 0.5))
        for position, count in enumerate(counts):
            length = k1 * (1 - b + b * count.total() / mean_length)
            scores[position] += idf * count[term] / (count[term] + length)
    return scores


CITIES = [
    "Rome is the capital of Italy.",
    "Paris is the capital of France, and the largest city of France.",
    "Oslo is the capital of Norway.",
    "Lake Como lies in Italy.",
    "Cheese is made of milk.",
]


def test_the_passages_that_share_most_come_first(started):
    backend = started(CITIES)
    assert backend.search("What is the capital of Italy?", 1) == [CITIES[0]]
    assert backend.search("lake in italy", 5)[:2] == [CITIES[3], CITIES[0]]
    assert backend.search("FRANCE", 5) == [CITIES[1]]


def test_a_score_by_hand(started):
    # "oslo" stands once in one of two passages of 2 and 4 words, 3 in the mean:
    # log(1 + (2 - 1 + 0.5) / (1 + 0.5)) * 1 / (1 + 1.5 * (1 - 0.75 + 0.75 * 2 / 3)) = log(2) / 2.125
    (hit,) = started(["Oslo lies", "Rome lies far away"]).rank("Oslo", 5)
    assert hit.id == "1"
    assert hit.text == "Oslo lies"
    assert hit.score == pytest.approx(math.log(2) / 2.125, rel=1e-6)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (1.2, 1.0)])
def test_scores_and_ranking_are_those_of_the_definition(started, k1, b):
    draw = random.Random(0)
    words = [f"w{number}" for number in range(60)]
    weights = [1 / (rank + 1) for rank in range(60)]
    texts = [" ".join(draw.choices(words, weights, k=draw.randint(3, 40))) for _ in range(200)]
    backend = started(texts, k1=k1, b=b)
    for _ in range(40):
        query = " ".join(draw.choices(words, k=draw.randint(1, 6)))
        scores = bm25_scores(texts, query, k1, b)
        hits = backend.rank(query, len(texts))
        assert [hit.score for hit in hits] == pytest.approx([scores[int(hit.id) - 1] for hit in hits], rel=1e-5)
        assert len(hits) == sum(score > 0.0 for score in scores)
        # Rounding may exchange what differs by less than single precision tells.
        ranked = [round(scores[int(hit.id) - 1], 4) for hit in hits]
        assert ranked == pytest.approx(sorted(ranked, reverse=True), abs=2e-4)
        assert [hit.id for hit in backend.rank(query, 7)] == [hit.id for hit in hits[:7]]


def test_passages_that_score_alike_keep_the_order_of_the_corpus(started):
    backend = started([f"a {'salt' if number % 3 else 'sugar'}" for number in range(240)])
    ids = [int(hit.id) for hit in backend.rank("salt", 10)]
    assert ids == [2, 3, 5, 6, 8, 9, 11, 12, 14, 15]


def test_nothing_fits_a_query_without_a_known_word(started):
    backend = started(CITIES)
    assert backend.search("zzz ?!", 3) == []
    assert backend.search("...", 3) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Beatles' song's one_end", ["the", "beatles", "song", "one", "end"]),
        ("Beyoncé STRASSE straße", ["beyonce", "strasse", "strasse"]),
        ("東京は3 Tokyo-3", ["東", "京", "は", "3", "tokyo", "3"]),
        ("Vitamin C, 1,000 ﬁsh", ["vitamin", "c", "1", "000", "fish"]),
    ],
)
def test_words_of_a_text(text, words):
    assert terms(text) == words


def test_titles_are_searched_and_shown(tmp_path):
    path = tmp_path / "corpus.csv"
    path.write_text("id,title,text\nr,Rome,Capital of Italy\no,Oslo,Capital of Norway\n")
    backend = BM25Search(str(path), title_key="title", id_key="id")
    backend.start()
    (hit,) = backend.rank("oslo", 3)
    assert (hit.id, hit.text) == ("o", "Oslo: Capital of Norway")


def test_an_index_is_built_once_and_anew_for_another_content_or_option(started, tmp_path):
    def indexes():
        return sorted(path.name for path in (tmp_path / "corpus.jsonl.bm25").iterdir() if path.is_dir())

    first = started(CITIES)
    built = indexes()
    files = [path.stat().st_mtime_ns for path in (tmp_path / "corpus.jsonl.bm25" / built[0]).iterdir()]
    again = started(CITIES)
    assert indexes() == built
    assert files == [path.stat().st_mtime_ns for path in (tmp_path / "corpus.jsonl.bm25" / built[0]).iterdir()]
    assert again.identity == first.identity
    other_option = started(CITIES, b=0.5)
    other_content = started(CITIES[1:])
    assert len(indexes()) == 3
    assert len({first.identity, other_option.identity, other_content.identity}) == 3
    assert other_content.search("rome", 3) == []
    assert first.search("rome", 3) == [CITIES[0]]


def build() -> None:
    """Starts a back end in a process of its own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    backend = BM25Search(sys.argv[1])
    backend.start()
    print("found", *[hit.id for hit in backend.rank("number7 number9", 5)])  # noqa: T201


def test_processes_that_start_at_once_build_one_index(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", [f"number{n % 50} number{n % 7}" for n in range(3000)])
    done = run(build, [str(corpus)], {}, {}, {}, {})
    assert done.returncode == 0, done.output
    assert done.output.count("building the BM25 index") == 1
    found = [line for line in done.output.splitlines() if line.startswith("found")]
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len([path for path in (tmp_path / "corpus.jsonl.bm25").iterdir() if path.is_dir()]) == 1


def test_what_a_killed_process_left_behind_is_built_anew(started, tmp_path):
    first = started(CITIES)
    (index,) = (path for path in (tmp_path / "corpus.jsonl.bm25").iterdir() if path.is_dir())
    index.rename(index.with_name(f"{index.name}.unfinished"))
    (index.with_name(f"{index.name}.unfinished") / "manifest.json").unlink()
    assert started(CITIES).search("oslo", 1) == first.search("oslo", 1)
    assert [path.name for path in index.parent.iterdir() if path.is_dir()] == [index.name]


@pytest.mark.parametrize("damage", ["shortened", "missing", "manifest"])
def test_a_damaged_index_is_refused(started, tmp_path, damage):
    started(CITIES)
    (index,) = (path for path in (tmp_path / "corpus.jsonl.bm25").iterdir() if path.is_dir())
    scores = index / "data.csc.index.npy"
    if damage == "shortened":
        scores.write_bytes(scores.read_bytes()[:-8])
    elif damage == "missing":
        scores.unlink()
    else:
        (index / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=rf"the BM25 index in {index} is damaged \(.*\); delete that folder"):
        started(CITIES)


def test_a_corpus_that_cannot_be_indexed_is_refused_and_leaves_nothing(started, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n')
    with pytest.raises(ValueError, match="ids must be unique in the corpus, got 'a' more than once"):
        BM25Search(str(path), id_key="id").start()
    with pytest.raises(ValueError, match="the corpus must hold at least one passage with a word in it"):
        started(["?!"])
    with pytest.raises(FileNotFoundError, match="corpus must name a file, got 'nowhere'"):
        BM25Search("nowhere").start()
    assert [path for path in tmp_path.glob("*.bm25/*") if path.is_dir()] == []


def test_a_missing_extra_is_named(started, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r'BM25Search needs the package bm25s, .*: pip install "appo\[search\]"'):
        started(CITIES)


def test_a_back_end_must_be_started(tmp_path):
    backend = BM25Search(str(tmp_path / "corpus.jsonl"))
    with pytest.raises(RuntimeError, match="must be started before it is searched"):
        backend.search("x", 1)
    with pytest.raises(RuntimeError, match="must be started before its identity is known"):
        _ = backend.identity


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"k1 must be positive, got 0.0"):
        BM25Search("corpus.jsonl", k1=0.0)
    with pytest.raises(ValueError, match=r"b must lie in \[0, 1\], got 1.5"):
        BM25Search("corpus.jsonl", b=1.5)


@pytest.mark.skipif(not HOTPOT.is_file(), reason="needs the HotpotQA sample in ../shared/data")
def test_paragraphs_that_answer_real_questions_are_found(tmp_path):
    questions = [json.loads(line) for line in HOTPOT.read_text().splitlines()]
    paragraphs = {
        title: " ".join(sentences)
        for question in questions
        for title, sentences in zip(question["context"]["title"], question["context"]["sentences"], strict=True)
    }
    path = tmp_path / "paragraphs.jsonl"
    path.write_text("".join(json.dumps({"title": key, "text": text}) + "\n" for key, text in paragraphs.items()))
    backend = BM25Search(str(path), title_key="title", id_key="title")
    backend.start()
    found = total = 0
    for question in questions:
        supporting = set(question["supporting_facts"]["title"])
        hits = {hit.id for hit in backend.rank(question["question"], 10)}
        found += len(supporting & hits)
        total += len(supporting)
    assert len(paragraphs) > 900
    assert found / total > 0.85
