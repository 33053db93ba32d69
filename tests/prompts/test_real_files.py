"""Files of other projects, with what is known about them; `SOURCES.md` beside them tells where they are from."""

from collections import Counter

import pytest

from appo.prompts import BenchmarkQuestions, JsonlQuestions, PromptLoader, Question, ReleaseQuestions, UnusableRow

NUM_BENCHMARK_ROWS = {"aime24": 30, "math500": 500, "bamboogle": 125, "hotpotqa": 200, "2wiki": 200, "musique": 200}


@pytest.fixture
def benchmarks(real_data):
    names = [BenchmarkQuestions(name, folder=str(real_data / "benchmarks")) for name in NUM_BENCHMARK_ROWS]
    return (*names, BenchmarkQuestions("gsm8k", folder=str(real_data)))


def test_training_file_of_the_release(real_data):
    pytest.importorskip("pyarrow", reason="needs the extra `data`")
    path = str(real_data / "appo/train_10k.parquet")
    rows = list(ReleaseQuestions(train=path, source_key="ability").rows("train"))
    questions = [row for row in rows if isinstance(row, Question)]
    assert [(row.row, row.reason) for row in rows if isinstance(row, UnusableRow)] == [(5274, "no_answer")]
    assert Counter(question.source for question in questions) == {"math": 4999, "qa": 5000}
    assert len({question.id for question in questions}) == 9999
    # One system prompt for all, with both commands restored and kept once in memory.
    assert len({id(question.messages[0]["content"]) for question in questions}) == 1
    assert questions[0].messages[0]["content"].count(r"\boxed{") == 2
    assert not any("\b" in message["content"] for question in questions for message in question.messages)


def test_training_file_of_the_release_as_it_is(real_data):
    pytest.importorskip("pyarrow", reason="needs the extra `data`")
    source = ReleaseQuestions(train=str(real_data / "appo/train_10k.parquet"), repair=False, balanced_answers=True)
    rows = list(source.rows("train"))
    assert Counter(row.reason for row in rows if isinstance(row, UnusableRow)) == {"no_answer": 1, "broken_answer": 10}
    assert next(iter(rows)).messages[0]["content"].count("\boxed{") == 2


def test_tests_in_the_training_files_are_found(real_data, benchmarks):
    pytest.importorskip("pyarrow", reason="needs the extra `data`")
    load = PromptLoader(lambda questions: [[0]] * len(questions), 1, "skip", benchmarks, "remove")
    train = load(ReleaseQuestions(train=str(real_data / "appo/train_10k.parquet")), "train")
    assert Counter(row.benchmark for row in train.contaminated) == {"hotpotqa": 5}
    assert len(train.prompts) + len(train.unusable) == 10_000 - 5
    valid = load(ReleaseQuestions(train=str(real_data / "appo/valid.parquet")), "train")
    counts = Counter(row.benchmark for row in valid.contaminated)
    assert counts == {"aime24": 30, "math500": 30, "bamboogle": 20, "musique": 1}


def test_benchmarks_are_complete(benchmarks, caplog):
    for source, num_rows in zip(benchmarks, [*NUM_BENCHMARK_ROWS.values(), 1319], strict=True):
        questions = source.load("test")
        assert len(questions) == num_rows
        assert {question.source for question in questions} == {source.name}
        assert len({question.id for question in questions}) == num_rows
    assert not caplog.text
    # The answer behind the last ####, without the working.
    assert questions[0].answers == ("18",)
    assert all(len(answer) < 20 and "#" not in answer for question in questions for answer in question.answers)


def test_questions_of_another_project_load_by_their_columns(real_data):
    source = JsonlQuestions(
        test=str(real_data / "hotpot/hotpot_distractor_sample100.jsonl"), id_key="id", source_key="type"
    )
    questions = source.load("test")
    assert len(questions) == 100
    assert {question.source for question in questions} <= {"bridge", "comparison"}
