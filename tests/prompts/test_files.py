"""What is particular to JSON lines, JSON lists, CSV and Parquet."""

import csv
import json
import sys

import pytest

from appo.prompts import (
    PROMPT_SOURCES,
    CsvQuestions,
    DatasetQuestions,
    JsonlQuestions,
    JsonQuestions,
    ParquetQuestions,
    ReleaseQuestions,
    UnusableRow,
)


@pytest.fixture
def write(tmp_path):
    """Writes records, or lines as they are, to a file and returns its path."""

    def write(*records, name="train.jsonl"):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return write


def test_questions_come_in_the_order_of_the_file(write):
    path = write({"question": "a?", "answer": "x"}, "", {"question": "b?", "answer": ["y", 2, 0.5]})
    first, second = JsonlQuestions(train=path).load("train")
    assert (first.id, first.messages, first.answers) == ("1", ({"role": "user", "content": "a?"},), ("x",))
    # Line 2 is blank.
    assert (second.id, second.text, second.answers, second.source) == ("3", "b?", ("y", "2", "0.5"), "")


def test_keys_and_system_prompt_are_options(write):
    path = write({"q": "a?", "gold": -3, "key": 7, "from": "math"}, name="t.jsonl")
    source = JsonlQuestions(
        test=path, question_key="q", answer_key="gold", id_key="key", source_key="from", system_prompt="Think."
    )
    (question,) = source.load("test")
    assert question.messages == ({"role": "system", "content": "Think."}, {"role": "user", "content": "a?"})
    assert (question.id, question.text, question.answers, question.source) == ("7", "a?", ("-3",), "math")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2 of .*train.jsonl must be a JSON object: Expecting"),
        ("[1]", r"line 2 of .*train.jsonl must be a JSON object, got \[1\]"),
        ({"answer": "x"}, r"question in line 2 of .* must be a text that is not empty, got none among the keys answer"),
        ({"question": " ", "answer": "x"}, r'question in line 2 of .* must be a text that is not empty, got " "'),
        ({"question": 3, "answer": "x"}, r"question in line 2 of .* must be a text that is not empty, got 3"),
        ({"question": "q"}, r"answer in line 2 of .* must be a text, .* got none among the keys question"),
        ({"question": "q", "answer": []}, r"answer in line 2 of .* must be a text, a number, or a list .*, got \[\]"),
        ({"question": "q", "answer": ["x", ""]}, r'answer in line 2 of .*, none empty, got \["x", ""\]'),
        ({"question": "q", "answer": True}, r"answer in line 2 of .*, none empty, got true"),
        ({"question": "q", "answer": {"a": 1}}, r"answer in line 2 of .*, none empty, got \{"),
    ],
)
def test_line_that_cannot_be_used_is_named(write, line, message):
    path = write({"question": "a?", "answer": "x"}, line)
    with pytest.raises(ValueError, match=message):
        JsonlQuestions(train=path).load("train")


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*a.jsonl must be a JSON object"):
        JsonlQuestions(train=str(tmp_path / "a.jsonl")).load("train")


def test_ids_must_be_there_and_unique(write):
    source = JsonlQuestions(train=write({"question": "a?", "answer": "x"}), id_key="key")
    with pytest.raises(ValueError, match=r"key in line 1 of .* must be a text or a number, got none among the keys"):
        source.load("train")
    record = {"question": "a?", "answer": "x", "key": "k"}
    source = JsonlQuestions(train=write(record, record), id_key="key")
    with pytest.raises(ValueError, match=r"key in line 2 of .* must be unique, got 'k' as in line 1"):
        source.load("train")


def test_file_that_is_not_there_or_holds_nothing_is_named(write):
    with pytest.raises(FileNotFoundError, match=r"validation must name a file, got 'no/such.jsonl'"):
        JsonlQuestions(validation="no/such.jsonl").load("validation")
    with pytest.raises(ValueError, match=r"test must name a file to load the test split, got None"):
        JsonlQuestions().load("test")
    with pytest.raises(ValueError, match=r"train must hold at least one question, got the empty file .*train.jsonl"):
        JsonlQuestions(train=write("", " ")).load("train")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_training_questions_must_not_be_tested(write, split):
    train = write({"question": "a?", "answer": "x"}, {"question": "b?", "answer": "x"})
    held_out = write({"question": " b? ", "answer": "x"}, name="held_out.jsonl")
    source = JsonlQuestions(train=train, validation=held_out, test=held_out)
    with pytest.raises(
        ValueError, match=r"must share no question, got 'b\?' in line|must share no question, got ' b\?"
    ):
        source.load(split)
    assert len(JsonlQuestions(validation=held_out, test=held_out).load(split if split != "train" else "test")) == 1


def test_source_is_registered():
    assert PROMPT_SOURCES["JsonlQuestions"] is JsonlQuestions


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


def test_a_cell_of_csv_may_be_long(tmp_path):
    question, before = "x" * 200_000, csv.field_size_limit()
    (tmp_path / "t.csv").write_text(f"question,answer\n{question},4\n")
    (loaded,) = CsvQuestions(test=str(tmp_path / "t.csv")).load("test")
    assert loaded.text == question
    assert csv.field_size_limit() == before


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
