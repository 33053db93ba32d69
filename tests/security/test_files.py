"""A row of a stranger's file that cannot be used is named, and ends no run that has begun."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from appo.prompts.base import UnusableRow
from appo.prompts.files import JsonlQuestions, JsonQuestions, ParquetQuestions
from appo.rollouts.inert_text import InertText
from appo.sft.files import FileConversations
from appo.tools.search.corpus import Columns, read_passages
from tests.rollouts.chat import make_chat_tokenizer

HALF = "2\udfff"
DEEP = "[" * 100_000 + "]" * 100_000
GOOD = {"question": "1+1?", "answer": "2", "id": "a", "source": "s"}
BAD = [
    {"answer": HALF},
    {"answer": ["2", HALF]},
    {"question": HALF},
    {"question": [{"role": "user", "content": HALF}]},
    {"question": [{"role": HALF, "content": "x"}, {"role": "user", "content": "x"}]},
    {"id": HALF},
    {"source": HALF},
]


def rows(tmp_path, line: str, **options) -> list:
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
    return list(JsonlQuestions(str(tmp_path / "train.jsonl"), **options).rows("train"))


@pytest.mark.parametrize("quote_rows", [True, False])
@pytest.mark.parametrize("fields", BAD, ids=json.dumps)
def test_a_row_that_cannot_be_encoded_is_unusable(tmp_path, fields, quote_rows):
    options = {"id_key": "id", "source_key": "source", "quote_rows": quote_rows}
    good, bad = rows(tmp_path, json.dumps({**GOOD, "id": "b", **fields}), **options)
    assert good.answers == ("2",)
    assert isinstance(bad, UnusableRow)
    assert (bad.row, bad.reason) == (2, "unreadable")
    bad.message.encode()


@pytest.mark.parametrize("line", [DEEP, f'{{"question": {DEEP}}}', '{"question": "x", "answer": ' + "1" * 5000 + "}"])
def test_a_row_that_is_nested_too_deep_is_unusable(tmp_path, line):
    _, bad = rows(tmp_path, line)
    assert isinstance(bad, UnusableRow)
    assert (bad.row, bad.reason) == (2, "unreadable")


@pytest.mark.parametrize("depth", range(700, 1000, 20))
def test_a_row_that_is_nested_almost_too_deep_is_unusable(tmp_path, depth):
    _, bad = rows(tmp_path, json.dumps(GOOD).replace('"2"', "[" * depth + "]" * depth))
    assert isinstance(bad, UnusableRow)


def test_a_list_that_is_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "train.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"train must be a JSON file, got .*: it is nested too deeply"):
        list(JsonQuestions(str(tmp_path / "train.json")).rows("train"))


@pytest.mark.parametrize("line", [DEEP, json.dumps({"messages": [{"role": "assistant", "content": HALF}]})])
def test_a_conversation_that_cannot_be_read_is_named(tmp_path, line):
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"line 1 of .*train\.jsonl must"):
        FileConversations(str(tmp_path / "train.jsonl")).load("train")


@pytest.mark.parametrize("line", [DEEP, json.dumps({"text": HALF})])
def test_a_passage_that_cannot_be_read_is_named(tmp_path, line):
    (tmp_path / "corpus.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"row 1 of .*corpus\.jsonl must"):
        list(read_passages(tmp_path / "corpus.jsonl", Columns("text", None, None)))


def test_a_result_that_cannot_be_encoded_is_text_without_that():
    assert InertText(make_chat_tokenizer(), ())(f"x{HALF}y") == "x2?y"


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"PAR1\x15\x04\xff\xff\x10\x00\x00\x00PAR1"])
def test_a_table_that_is_damaged_is_refused_in_a_line(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^train must be a Parquet file, got [^\n]*$"):
        ParquetQuestions(train=str(path)).load("train")
    with pytest.raises(ValueError, match=r"^corpus must be a Parquet file, got [^\n]*$"):
        list(read_passages(path, Columns("text", None, None)))


def test_the_pages_of_a_table_are_looked_at_too(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["x" * 99], "answer": ["1"]}), path)
    path.write_bytes(path.read_bytes().replace(b"\x15", b"\xff", 3))
    with pytest.raises(ValueError, match=r"^train must be a Parquet file, got [^\n]*$"):
        ParquetQuestions(train=str(path)).load("train")


LONG = "x" * 10_000


@pytest.mark.parametrize(
    "line", [{LONG: 1}, {f"{i}{LONG}": 1 for i in range(30)}, {"question": "?", "answer": [LONG, 1, {}]}]
)
def test_what_is_told_of_a_row_is_short(tmp_path, line):
    _, row = rows(tmp_path, json.dumps(line))
    assert len(row.message) < 1000


@pytest.mark.parametrize(
    "line", [{LONG: 1}, {f"{i}{LONG}": 1 for i in range(30)}, {"text": [LONG]}, {"text": LONG + HALF}]
)
def test_what_is_told_of_a_passage_is_short(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(ValueError, match="row 1") as error:
        list(read_passages(path, Columns("text", None, None)))
    assert len(str(error.value)) < 1000
