import json

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from appo.tools.search.corpus import Columns, Passage, read_passages

ROWS = [
    {"key": "a", "name": "Rome", "body": "The city,\non seven hills."},
    {"key": "b", "name": "", "body": 'Said "so".'},
    {"key": "c", "name": " ", "body": ""},
    {"key": "d", "name": "Zürich", "body": ""},
]
COLUMNS = Columns(text="body", title="name", id="key")
PASSAGES = [Passage("a", "Rome: The city,\non seven hills."), Passage("b", 'Said "so".'), Passage("d", "Zürich")]


def quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def write(folder, suffix):
    path = folder / f"corpus{suffix}"
    if suffix == ".parquet":
        write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, ROWS)))
    else:
        separator = "\t" if suffix == ".tsv" else ","
        lines = [separator.join(ROWS[0]), *(separator.join(map(quoted, row.values())) for row in ROWS)]
        path.write_text("\ufeff" + "\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_holds_the_same_passages(tmp_path, suffix):
    assert list(read_passages(write(tmp_path, suffix), COLUMNS)) == PASSAGES


def test_rows_without_an_id_are_numbered(tmp_path):
    path = write(tmp_path, ".csv")
    passages = list(read_passages(path, Columns(text="body", title=None, id=None)))
    assert [passage.id for passage in passages] == ["1", "2"]


def test_a_number_may_be_an_id(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": 7, "text": "x"}')
    assert list(read_passages(path, Columns("text", None, "id"))) == [Passage("7", "x")]


def test_a_field_of_a_table_may_be_long(tmp_path):
    path = tmp_path / "corpus.csv"
    path.write_text("text\n" + "x" * 200_000)
    assert [len(passage.text) for passage in read_passages(path, Columns("text", None, None))] == [200_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"txt": "x"}', r"row 2 of .*a.jsonl must have a column 'text', got only 'txt'"),
        ("a.jsonl", '{"text": 5}', r"'text' in row 1 of .*a.jsonl must be text, got 5"),
        ("a.jsonl", "[1]", r"row 1 of .*a.jsonl must be a JSON object, got list"),
        ("a.jsonl", "{", r"row 1 of .*a.jsonl must be a JSON object: "),
        ("a.csv", "id,text\n3", r"'text' in row 1 of .*a.csv must be text, got null"),
        ("a.txt", "x", r"corpus must end in .jsonl, .csv, .tsv, .parquet, got '.*a.txt'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_passages(tmp_path / name, Columns("text", None, None)))
