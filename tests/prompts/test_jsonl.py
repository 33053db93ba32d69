import json

import pytest

from appo.prompts import PROMPT_SOURCES, JsonlQuestions


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
