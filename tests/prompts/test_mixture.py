import pytest

from appo.prompts import BenchmarkQuestions, JsonlQuestions, MixedQuestions, WorldQuestions
from appo.prompts.base import UnusableRow


@pytest.fixture
def math(write_rows):
    return JsonlQuestions(train=write_rows([{"question": f"{i}?", "answer": i} for i in range(4)], "math.jsonl"))


@pytest.fixture
def qa(write_rows):
    rows = [{"question": f"who {i}?", "answer": "me", "from": "web"} for i in range(3)]
    return JsonlQuestions(
        train=write_rows(rows, "qa.jsonl"), validation=write_rows([{**rows[0], "question": "?"}], "v.jsonl"),
        source_key="from",
    )  # fmt: skip


def test_ids_and_sources_tell_the_parts_apart(math, qa):
    questions = MixedQuestions({"math": math, "qa": qa}).load("train")
    assert [question.id for question in questions] == [*(f"math/{i}" for i in (1, 2, 3, 4)), "qa/1", "qa/2", "qa/3"]
    # A part that is named in the data keeps its name.
    assert {question.source for question in questions} == {"math", "web"}
    assert {question.part for question in questions} == {""}


def test_a_split_has_the_sources_that_have_it(math, qa, tmp_path, write_rows):
    write_rows([{"question": "q?", "answer": "1"}] * 30, "aime24.jsonl")
    mixed = MixedQuestions({"math": math, "qa": qa, "aime": BenchmarkQuestions("aime24", folder=str(tmp_path))})
    assert mixed.splits == ("train", "validation", "test")
    assert len(mixed.load("train")) == 7
    assert {question.source for question in mixed.load("validation")} == {"web", "aime24"}
    assert {question.source for question in mixed.load("test")} == {"aime24"}
    with pytest.raises(ValueError, match="sources must have one with a test split, got math, qa without"):
        MixedQuestions({"math": math, "qa": qa}).load("test")


def test_weights_name_the_parts_that_are_drawn_from(math, qa):
    mixed = MixedQuestions({"math": math, "qa": qa}, {"math": 3.0, "qa": 1.0})
    assert mixed.weights == {"math/": 3.0, "qa/": 1.0}
    assert {question.part for question in mixed.load("train")} == {"math/", "qa/"}
    nested = MixedQuestions({"both": mixed, "world": WorldQuestions()}, {"both": 2.0, "world": 1.0})
    assert nested.weights == {"both/math/": 1.5, "both/qa/": 0.5, "world/": 1.0}
    assert {question.part for question in nested.load("train")} == set(nested.weights)


def test_unusable_rows_of_all_sources_are_passed_on(math, write_rows):
    broken = JsonlQuestions(train=write_rows([{"question": "a?"}], "broken.jsonl"))
    mixed = MixedQuestions({"math": math, "broken": broken})
    *_, row = mixed.rows("train")
    assert isinstance(row, UnusableRow)
    assert row.origin == broken.train
    with pytest.raises(ValueError, match=r"answer in line 1 of .*broken.jsonl must be a text"):
        mixed.load("train")


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], None, "sources must hold at least one source, got none"),
        (["a/b"], None, "names of sources must not be empty or have a '/', got a/b"),
        (["math", "qa"], {"math": 1.0}, "training_weights must name .* a training split: math, qa, got math"),
        (["math", "aime"], {"math": 1.0, "aime": 1.0}, "training_weights must name .*: math, got math, aime"),
        (["math", "qa"], {"math": 1.0, "qa": 0.0}, "training_weights must be positive, got"),
        (["math", "qa"], {"math": 1.0, "qa": float("nan")}, "training_weights must be positive, got"),
    ],
)
def test_bad_options_are_refused(math, qa, names, weights, message):
    known = {"math": math, "qa": qa, "aime": BenchmarkQuestions("aime24"), "a/b": math}
    with pytest.raises(ValueError, match=message):
        MixedQuestions({name: known[name] for name in names}, weights)
