"""What is particular to JSON lists, CSV and Parquet."""

import json
import sys

import pytest

from appo.prompts import CsvQuestions, DatasetQuestions, JsonQuestions, ParquetQuestions, ReleaseQuestions, UnusableRow


def test_json_list_may_stand_under_a_key(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"data": {"rows": [{"question": "a?", "answer": 1}, 3]}}))
    question, row = JsonQuestions(test=str(path), list_key="data.rows").rows("test")
    assert question.answers == ("1",)
    assert isinstance(row, UnusableRow)
    assert row.message == f"row 1 of {path} must be a JSON object, got a int"
    with pytest.raises(ValueError, match=r"test must be a file with a JSON list under rows, got none in .*t.json"):
        JsonQuestions(test=str(path), list_key="rows").load("test")
    with pytest.raises(ValueError, match=r"test must be a file with a JSON list, got none in .*t.json"):
        JsonQuestions(test=str(path)).load("test")
    path.write_text('[{"question": SECRET}]')
    with pytest.raises(ValueError, match=r"test must be a JSON file, got .*t.json: Expecting value") as error:
        JsonQuestions(test=str(path)).load("test")
    assert "SECRET" not in str(error.value)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"test must hold at least one question, got the empty file"):
        JsonQuestions(test=str(path)).load("test")


def test_csv_takes_tabs_a_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes("\ufeffquestion\tanswer\r\na, b?\t1\r\n\r\nc?\t2\r\n".encode())
    first, second = CsvQuestions(test=str(path), delimiter="\t").load("test")
    assert (first.text, first.id, second.text, second.id) == ("a, b?", "0", "c?", "1")
    with pytest.raises(ValueError, match="delimiter must be one character, got ';;'"):
        CsvQuestions(test=str(path), delimiter=";;")


def test_csv_rows_of_another_width_are_unusable(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("question,answer\na?,1\nb?\nc?,1,2\n")
    question, short, long = CsvQuestions(test=str(path)).rows("test")
    assert question.text == "a?"
    assert short.message == f"row 1 of {path} must have the 2 columns of the first row, got 1"
    assert (long.row, long.reason) == (2, "unreadable")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'question,answer\n"a?"b,1\n', "line 2: ',' expected after '\"'"),
        (b"question,answer\n\xff?,1\n", "a byte that is no UTF-8"),
    ],
)
def test_a_file_that_is_no_csv_is_named(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"test must be a CSV file, got .*t.csv: .*{message}"):
        CsvQuestions(test=str(path)).load("test")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra `data`")
    path = tmp_path / "t.parquet"
    path.write_text("question,answer\n")
    with pytest.raises(ValueError, match=r"test must be a Parquet file, got .*t.parquet"):
        ParquetQuestions(test=str(path)).load("test")


def release_row(index, question, gold, **fields):
    prompt = [{"role": "system", "content": "Answer in \boxed{}."}, {"role": "user", "content": question}]
    return {
        "data_source": "mix",
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": index, "question": question, "split": "train"},
        "metadata": None,
        **fields,
    }


def test_release_layout(write_rows):
    rows = [release_row(10, "a?", "1"), release_row(11, "b?", " "), release_row(10, "c?", "1")]
    path = write_rows(rows, "train.parquet")
    first, no_answer, twice = ReleaseQuestions(train=path).rows("train")
    assert (first.id, first.text, first.answers, first.source) == ("10", "a?", ("1",), "mix")
    assert first.messages[0] == {"role": "system", "content": r"Answer in \boxed{}."}
    assert (no_answer.row, no_answer.reason) == (1, "no_answer")
    assert no_answer.message.startswith("reward_model.ground_truth in row 1 of")
    assert (twice.row, twice.reason) == (2, "duplicate_id")
    assert "extra_info.index in row 2 of" in twice.message
    assert next(ReleaseQuestions(train=path, source_key="ability").rows("train")).source == "math"


def test_parquet_is_read_in_batches(write_rows):
    rows = [{"question": f"{i}?", "answer": i} for i in range(2500)]
    questions = ParquetQuestions(train=write_rows(rows, "t.parquet")).load("train")
    assert [(question.row, question.text) for question in questions] == [(i, f"{i}?") for i in range(2500)]


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    (tmp_path / "t.parquet").touch()
    # How Python marks a module that is not there.
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'ParquetQuestions needs the package pyarrow.* "appo\[data\]"'):
        ParquetQuestions(train=str(tmp_path / "t.parquet")).load("train")
    with pytest.raises(ModuleNotFoundError, match=r'DatasetQuestions needs the package datasets.* "appo\[data\]"'):
        DatasetQuestions(path="somebody/something").load("train")
