"""What makes a row a question is the same in every format."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appo.prompts import (
    CsvQuestions,
    DatasetQuestions,
    JsonlQuestions,
    JsonQuestions,
    MixedQuestions,
    ParquetQuestions,
    Question,
    UnusableRow,
)
from appo.prompts.base import refusal, summarize, to_messages
from appo.prompts.fields import is_balanced, lookup, repair_commands, to_text

FORMATS = {
    "questions.jsonl": JsonlQuestions,
    "questions.json": JsonQuestions,
    "questions.csv": CsvQuestions,
    "questions.parquet": ParquetQuestions,
}


def rows_of(source, split="train"):
    """The questions and the unusable rows."""
    rows = list(source.rows(split))
    return [r for r in rows if isinstance(r, Question)], [r for r in rows if isinstance(r, UnusableRow)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_questions(write_rows, name):
    path = write_rows(
        [
            {"q": 'Wer ist das?\nSag, "wer"!', "gold": "Zoë", "key": "a", "from": "qa"},
            {"q": "1 + 1?", "gold": "2", "key": "b", "from": "math"},
        ],
        name,
    )
    source = FORMATS[name](test=path, question_key="q", answer_key="gold", id_key="key", source_key="from")
    first, second = source.load("test")
    assert (first.text, first.answers, first.id, first.source) == ('Wer ist das?\nSag, "wer"!', ("Zoë",), "a", "qa")
    assert (second.text, second.answers, second.id, second.source) == ("1 + 1?", ("2",), "b", "math")
    assert first.origin == path
    # Lines count from 1, as editors count them; rows of tables from 0, as pandas counts them.
    assert [first.row, second.row] == ([1, 2] if name.endswith("jsonl") else [0, 1])


@pytest.mark.parametrize("name", FORMATS)
def test_further_columns_go_along(write_rows, name):
    rows = [{"question": f"{i}?", "answer": "x", "level": f"{i}", "rest": "r"} for i in range(2)]
    source = FORMATS[name](test=write_rows(rows, name), columns=["level", "answer"])
    assert [question.columns for question in source.load("test")] == [
        {"level": f"{i}", "answer": "x"} for i in range(2)
    ]


def test_columns_may_be_nested_and_absent_in_some_rows(write_rows):
    rows = [{"question": "a?", "answer": "x", "info": {"level": [1]}}, {"question": "b?", "answer": "x"}]
    path = write_rows(rows, "t.jsonl")
    first, second = JsonlQuestions(train=path, columns=["info.level"]).load("train")
    assert (first.columns, second.columns) == ({"level": [1]}, {"level": None})
    with pytest.raises(
        ValueError, match=r"columns must name fields of lines, got 'levle', which none of .*t.jsonl has"
    ):
        JsonlQuestions(train=path, columns=["levle"]).load("train")
    with pytest.raises(ValueError, match=r"columns must end in different names .*, got \['a.level', 'level'\]"):
        JsonlQuestions(train=path, columns=["a.level", "level"])


def test_who_only_asks_needs_no_answers(write_rows):
    rows = [{"question": "a?"}, {"question": "b?", "answer": "x"}, {"question": "c?", "answer": None}]
    source = JsonlQuestions(test=write_rows(rows, "t.jsonl"))
    assert [question.answers for question in source.without_answers().load("test")] == [(), ("x",), ()]
    mixed = MixedQuestions({"own": source}).without_answers()
    assert [question.answers for question in mixed.load("test")] == [(), ("x",), ()]
    _, unusable = rows_of(source, "test")
    assert [row.reason for row in unusable] == ["no_answer", "no_answer"]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_cannot_be_used_are_named_and_the_others_kept(write_rows, name):
    path = write_rows(
        [
            {"question": "a?", "answer": "x"},
            {"question": "  ", "answer": "x"},
            {"question": "c?", "answer": ""},
            {"question": "d?", "answer": "y"},
        ],
        name,
    )
    questions, unusable = rows_of(FORMATS[name](train=path))
    first = 1 if name.endswith("jsonl") else 0
    assert [question.text for question in questions] == ["a?", "d?"]
    assert [question.row for question in questions] == [first, first + 3]
    assert [(row.row, row.reason) for row in unusable] == [(first + 1, "no_question"), (first + 2, "no_answer")]
    assert all(row.origin == path for row in unusable)
    assert unusable[1].message.startswith(f"answer in {FORMATS[name].unit} {first + 2} of {path} must be a text")


def test_refusal_counts_all_rows_and_says_how_to_go_on(write_rows):
    path = write_rows(
        [{"question": "a?", "answer": None}, {"question": ""}, {"question": "c?", "answer": []}], "t.jsonl"
    )
    with pytest.raises(ValueError, match=r"answer in line 1 .* must be a text") as error:
        JsonlQuestions(train=path).load("train")
    assert "data.unusable_rows=skip would leave out this row and 2 more" in str(error.value)
    assert f"2 no_answer ({path}: 1, 3), 1 no_question ({path}: 2)" in str(error.value)


def test_summary_cuts_long_lists_of_rows():
    rows = [UnusableRow("f", number, "no_answer", "m") for number in (4, 7, 9)]
    assert summarize(rows, max_numbers=2) == "3 no_answer (f: 4, 7, ...)"
    assert summarize(rows) == "3 no_answer (f: 4, 7, 9)"
    assert refusal(rows[:1]) == "m; data.unusable_rows=skip would leave the row out"


def test_keys_with_dots_lead_into_nested_fields():
    record = {"a": {"b": {"c": 1}, "x": None}, "a.b": 2}
    assert lookup(record, "a.b.c") == 1
    # A key of the record itself comes first.
    assert lookup(record, "a.b") == 2
    assert lookup(record, "a.x") is None
    assert to_text(lookup(record, "a.b.d")) == to_text(lookup(record, "z")) == to_text(lookup(record, "a.x.y")) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(" a ", "a"), (3, "3"), (-0.5, "-0.5"), (True, ""), (None, ""), (float("nan"), ""), (float("inf"), ""), ([], "")],
)
def test_answers_are_texts_or_finite_numbers(value, text):
    assert to_text(value) == text


def test_conversations_may_stand_in_for_questions(write_rows):
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}]
    path = write_rows([{"question": talk, "answer": 1}], "t.jsonl")
    (question,) = JsonlQuestions(train=path, system_prompt="Think.").load("train")
    assert question.messages == ({"role": "system", "content": "Think."}, *talk)
    assert question.text == "c?"


def test_system_prompt_replaces_that_of_the_row(write_rows):
    talk = [{"role": "system", "content": "Hurry."}, {"role": "user", "content": "a?"}]
    path = write_rows([{"question": talk, "answer": 1}], "t.jsonl")
    (question,) = JsonlQuestions(train=path, system_prompt="Think.").load("train")
    assert [message["content"] for message in question.messages] == ["Think.", "a?"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        ["a?"],
        [{"role": "user"}],
        [{"role": "user", "content": ["a?"]}],
        [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": " "}],
    ],
)
def test_what_does_not_end_with_a_question_is_no_conversation(value):
    assert to_messages(value) is None


def test_damaged_commands_are_restored_and_counted(write_rows, caplog):
    talk = [
        {"role": "system", "content": "Use \boxed{answer here}."},
        {"role": "user", "content": "What is \frac{1}{2} of\ff 4?"},
    ]
    path = write_rows([{"question": talk, "answer": "2"}, {"question": "Fine?", "answer": "yes"}], "t.jsonl")
    with caplog.at_level(logging.INFO):
        repaired, _ = JsonlQuestions(train=path).load("train")
    # A form feed before anything else than "rac" says nothing of what stood there.
    assert [message["content"] for message in repaired.messages] == [
        r"Use \boxed{answer here}.",
        "What is \\frac{1}{2} of\ff 4?",
    ]
    assert r"restored \boxed or \frac in 1 rows" in caplog.text
    kept, _ = JsonlQuestions(train=path, repair=False).load("train")
    assert list(kept.messages) == talk


@given(st.text(alphabet="\b\foxedrac\\{} "))
def test_repair_leaves_nothing_to_repair(text):
    repaired = repair_commands(text)
    assert "\boxed" not in repaired
    assert "\frac" not in repaired
    assert repair_commands(repaired) == repaired
    assert repaired.replace(r"\boxed", "\boxed").replace(r"\frac", "\frac") == text.replace(
        r"\boxed", "\boxed"
    ).replace(r"\frac", "\frac")


def test_pattern_takes_the_last_match_as_the_answer(write_rows):
    rows = [
        {"question": "a?", "answer": "2 + 3 = 5\n#### 5\nno:\n#### 1,005 "},
        {"question": "b?", "answer": ["#### x", "#### y"]},
        {"question": "c?", "answer": "5"},
    ]
    path = write_rows(rows, "t.jsonl")
    questions, (unusable,) = rows_of(JsonlQuestions(train=path, answer_pattern=r"####\s*(\S.*)"))
    assert [question.answers for question in questions] == [("1,005",), ("x", "y")]
    assert (unusable.row, unusable.reason) == (3, "no_answer")
    assert r"must be a text that matches ####\s*(\S.*)" in unusable.message


def test_separator_parts_the_accepted_answers(write_rows):
    path = write_rows(
        [{"question": "a?", "answer": "UK| Great Britain"}, {"question": "b?", "answer": "x||y"}], "t.csv"
    )
    (question,), (unusable,) = rows_of(CsvQuestions(train=path, answer_separator="|"))
    assert question.answers == ("UK", "Great Britain")
    assert unusable.reason == "no_answer"


@pytest.mark.parametrize(
    ("answer", "is_whole"),
    [
        ("42", True),
        (r"\frac{1}{2}", True),
        ("1}^{N", False),
        (r"\frac{1}{2", False),
        ("(0, 1]", True),
        ("]0, 1[", True),
        (r"\{ -8 \} \cup [1, +\infty)", True),
        (r"\left\{ x", True),
        (r"\\{", False),
        ("(37", False),
        ("2)", False),
    ],
)
def test_an_answer_closes_what_it_opens(answer, is_whole):
    assert is_balanced(answer) is is_whole


def test_broken_answers_are_unusable_by_option(write_rows):
    path = write_rows([{"question": "a?", "answer": ["1", "(2"]}, {"question": "b?", "answer": "[0, 1)"}], "t.jsonl")
    assert len(JsonlQuestions(train=path).load("train")) == 2
    questions, (unusable,) = rows_of(JsonlQuestions(train=path, balanced_answers=True))
    assert [question.text for question in questions] == ["b?"]
    assert (unusable.row, unusable.reason) == (1, "broken_answer")
    assert 'close every bracket that it opens, got ["1", "(2"]' in unusable.message


def test_training_rows_that_are_held_out_can_be_left_out(write_rows):
    train = write_rows([{"question": "a?", "answer": "x"}, {"question": " b?", "answer": "x"}], "train.jsonl")
    test = write_rows([{"question": "b? ", "answer": "x"}, {"question": "", "answer": "x"}], "test.jsonl")
    source = JsonlQuestions(train=train, test=test)
    questions, (unusable,) = rows_of(source)
    assert [question.text for question in questions] == ["a?"]
    assert (unusable.row, unusable.reason) == (2, "held_out")
    assert f"line 2 of {train} and line 1 of {test}" in unusable.message
    assert [question.text for question in rows_of(source, "test")[0]] == ["b? "]


def test_messages_need_not_quote_the_data(write_rows, tmp_path):
    secret = [
        {"question": {"text": "SECRET"}, "answer": "x"},
        {"question": "SECRET a?", "answer": {"text": "SECRET"}},
        {"question": "SECRET b?", "answer": "SECRET (", "id": 1},
        {"question": "SECRET c?", "answer": "SECRET"},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in secret) + '["SECRET"]\n{"SECRET": \n')
    held_out = write_rows([{"question": "SECRET c?", "answer": "SECRET"}], "h.jsonl")
    source = JsonlQuestions(train=str(path), test=held_out, balanced_answers=True, quote_rows=False)
    questions, unusable = rows_of(source)
    assert not questions
    assert [row.reason for row in unusable] == [
        "no_question", "no_answer", "broken_answer", "held_out", "unreadable", "unreadable"
    ]  # fmt: skip
    assert not any("SECRET" in row.message for row in unusable)
    assert any("SECRET" in row.message for row in rows_of(JsonlQuestions(train=str(path)))[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer_pattern": "("}, r"answer_pattern must be a regular expression, got '\('"),
        ({"answer_pattern": "a"}, "answer_pattern must have one group, got 0 in 'a'"),
        ({"answer_separator": ""}, "answer_separator must not be empty"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JsonlQuestions(train="t.jsonl", **options)
    with pytest.raises(ValueError, match=message):
        DatasetQuestions(path="somebody/something", **options)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"question": st.none() | texts, "answer": st.none() | texts | st.integers() | st.lists(texts, max_size=3)}
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_is_accounted_for_once(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "t.json"
    path.write_text(json.dumps(rows))
    questions, unusable = rows_of(JsonQuestions(train=str(path)))
    assert sorted([row.row for row in questions] + [row.row for row in unusable]) == list(range(len(rows)))
    for question in questions:
        answer = rows[question.row]["answer"]
        wanted = answer if isinstance(answer, list) else [answer]
        assert question.answers == tuple(str(answer).strip() for answer in wanted)
        assert question.text == rows[question.row]["question"]
