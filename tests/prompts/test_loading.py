"""Rows that are left out are counted, listed and explained; contaminated ones too."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appo.prompts import (
    BenchmarkQuestions,
    ChatEncoder,
    JsonlQuestions,
    PromptLoader,
    WorldQuestions,
    normalize_question,
    write_account,
)
from appo.prompts.contamination import BenchmarkIndex

LONG = "a very long question " * 20


@pytest.fixture
def source(write_rows):
    rows = [
        {"question": "Where was Ada born?", "answer": "x"},
        {"question": "", "answer": "x"},
        {"question": LONG, "answer": "x"},
        {"question": "What is x-1?", "answer": "x"},
        {"question": "c?", "answer": None},
    ]
    return JsonlQuestions(train=write_rows(rows, "train.jsonl"))


@pytest.fixture
def benchmark(tmp_path, write_rows):
    rows = [
        {"question": "what is x+1", "answer": ["1"]},
        {"question": "  where was “Ada” born", "answer": ["1"]},
        {"question": "", "answer": ["1"]},
    ]
    write_rows(rows, "hle.jsonl")
    return BenchmarkQuestions("hle", folder=str(tmp_path))


def test_unusable_rows_are_skipped_or_refused(source, tokenizer):
    encode = ChatEncoder(tokenizer)
    loaded = PromptLoader(encode, 60, "skip")(source, "train")
    assert [prompt.id for prompt in loaded.prompts] == ["1", "4"]
    assert [(row.row, row.reason) for row in sorted(loaded.unusable, key=lambda row: row.row)] == [
        (2, "no_question"), (3, "too_long"), (5, "no_answer")
    ]  # fmt: skip
    with pytest.raises(
        ValueError, match=r"question in line 2 of .*data.unusable_rows=skip would leave out this row and 1 "
    ):
        PromptLoader(encode, 60)(source, "train")


def test_a_prompt_that_is_too_long_is_refused_by_default(write_rows, tokenizer):
    source = JsonlQuestions(test=write_rows([{"question": LONG, "answer": "x"}], "t.jsonl"))
    num_tokens = len(ChatEncoder(tokenizer)(source.load("test"))[0])
    assert len(PromptLoader(ChatEncoder(tokenizer), num_tokens)(source, "test").prompts) == 1
    message = rf"at most data.max_prompt_tokens = {num_tokens - 1} tokens, question '1' has {num_tokens}"
    with pytest.raises(ValueError, match=message):
        PromptLoader(ChatEncoder(tokenizer), num_tokens - 1)(source, "test")


def test_data_of_which_nothing_is_left_is_refused(write_rows, tokenizer):
    source = JsonlQuestions(test=write_rows([{"question": "a?"}, {"question": "b?"}], "t.jsonl"))
    message = r"must have a usable test question, got 0 that stand in a benchmark, and unusable rows: 2 no_answer \("
    with pytest.raises(ValueError, match=message):
        PromptLoader(ChatEncoder(tokenizer), 60, "skip")(source, "test")


@pytest.mark.parametrize(("contaminated_rows", "ids"), [("report", ["1", "4"]), ("remove", ["4"])])
def test_training_questions_of_a_benchmark_are_found(source, benchmark, tokenizer, contaminated_rows, ids):
    load = PromptLoader(ChatEncoder(tokenizer), 60, "skip", (benchmark,), contaminated_rows)
    loaded = load(source, "train")
    assert [prompt.id for prompt in loaded.prompts] == ids
    (found,) = loaded.contaminated
    assert (found.id, found.origin, found.row) == ("1", source.train, 1)
    assert (found.benchmark, found.benchmark_row) == ("hle", 2)


def test_only_training_questions_are_compared(benchmark, tokenizer):
    loaded = PromptLoader(ChatEncoder(tokenizer), 60, "skip", (benchmark,), "remove")(benchmark, "test")
    assert len(loaded.prompts) == 2
    assert not loaded.contaminated


def test_the_account_lists_every_row_and_no_text_of_a_benchmark(source, benchmark, tokenizer, tmp_path, caplog):
    loaded = PromptLoader(ChatEncoder(tokenizer), 60, "skip", (benchmark,), "remove")(source, "train")
    with caplog.at_level(logging.WARNING):
        write_account(loaded, "train", True, tmp_path / "run")
    skipped = [json.loads(line) for line in (tmp_path / "run/skipped_rows_train.jsonl").read_text().splitlines()]
    assert {(row["row"], row["reason"], row["origin"]) for row in skipped} == {
        (2, "no_question", source.train), (3, "too_long", source.train), (5, "no_answer", source.train)
    }  # fmt: skip
    assert all(row["split"] == "train" and row["message"] for row in skipped)
    (found,) = [json.loads(line) for line in (tmp_path / "run/contaminated_rows.jsonl").read_text().splitlines()]
    assert found == {
        "id": "1", "origin": source.train, "row": 1, "benchmark": "hle", "benchmark_row": 2, "removed": True
    }  # fmt: skip
    assert "train: 3 rows are left out: 1 " in caplog.text
    assert "skipped_rows_train.jsonl" in caplog.text
    assert "1 questions stand in a benchmark and are left out: 1 hle (ids 1); listed in" in caplog.text
    assert "Ada" not in caplog.text + (tmp_path / "run/contaminated_rows.jsonl").read_text()


def test_without_a_folder_the_log_has_every_row_number(write_rows, tokenizer, tmp_path, caplog):
    rows = [{"question": "a?", "answer": "x"}, *[{"question": "a?"}] * 30]
    source = JsonlQuestions(train=write_rows(rows, "t.jsonl"))
    loaded = PromptLoader(ChatEncoder(tokenizer), 60, "skip")(source, "train")
    with caplog.at_level(logging.WARNING):
        write_account(loaded, "train", False, None)
    assert f"30 no_answer ({source.train}: {', '.join(str(n) for n in range(2, 32))})" in caplog.text


def test_an_account_replaces_that_of_an_earlier_run(tokenizer, tmp_path):
    for name in ("skipped_rows_test.jsonl", "contaminated_rows.jsonl", "skipped_rows_train.jsonl"):
        (tmp_path / name).write_text("old")
    loaded = PromptLoader(ChatEncoder(tokenizer), 60)(WorldQuestions(), "test")
    write_account(loaded, "test", False, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contaminated_rows.jsonl", "skipped_rows_train.jsonl"]
    write_account(loaded, "train", False, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "other", "is_equal"),
    [
        ("Who is it?", "  who IS\nit", True),
        ("“Who”, is it", '"who" is it?', True),
        ("The Half-Way Girl", "the half way girl", True),
        ("a\u00a0ﬁne day", "a fine day", True),
        ("Straße?", "STRASSE", True),
        ("x-1", "x+1", False),
        ("What is 2 - 3?", "What is 2 + 3?", False),
        ("1.5 m", "15 m", False),
        ("1/2", "1*2", False),
        ("the girl", "girl", False),
    ],
)
def test_questions_are_compared_but_for_spelling(text, other, is_equal):
    assert (normalize_question(text) == normalize_question(other)) is is_equal


@given(st.text())
def test_normalized_questions_stay_as_they_are(text):
    once = normalize_question(text)
    assert normalize_question(once) == once


def test_splits_to_train_on_are_no_benchmark(source):
    assert BenchmarkIndex([source])._places == {}
