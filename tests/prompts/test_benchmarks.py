import logging
from typing import get_args

import pytest

from appo.prompts import BENCHMARKS, PROMPT_SOURCES, BenchmarkQuestions, UnusableRow
from appo.prompts.benchmarks import BenchmarkName

# A row of each benchmark as the authors' files have them, and the answers in it.
LAYOUTS = {
    "aime24": ({"id": 60, "problem": "no", "solution": "no", "question": "q?", "answer": "204"}, ("204",)),
    "aime25": ({"problem": "q?", "answer": 70}, ("70",)),
    "math500": (
        {"question": "q?", "answer": r"\left( 3, \frac{\pi}{2} \right)"},
        (r"\left( 3, \frac{\pi}{2} \right)",),
    ),
    "gsm8k": ({"question": "q?", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"}, ("1,018",)),
    "math": ({"problem": "q?", "answer": "-3"}, ("-3",)),
    "hotpotqa": ({"question": "q?", "answer": ["1.95 m"]}, ("1.95 m",)),
    "2wiki": ({"question": "q?", "answer": ["NYC", "New York"]}, ("NYC", "New York")),
    "musique": ({"question": "q?", "answer": ["a", "b", "c"]}, ("a", "b", "c")),
    "bamboogle": ({"question": "q?", "answer": ["james madison"]}, ("james madison",)),
    "webwalker": ({"question": "q?", "answer": "x", "root_url": "u", "info": {"lang": "en"}}, ("x",)),
    "gaia": ({"Question": "q?", "answer": "17", "Level": "1"}, ("17",)),
    "hle": ({"question": "q?", "answer": "B"}, ("B",)),
    "xbench": ({"question": "q?", "answer": ["x"]}, ("x",)),
    "simpleqa": ({"question": "q?", "answer": ["x"]}, ("x",)),
}


def test_there_are_fourteen():
    assert set(LAYOUTS) == set(BENCHMARKS) == set(get_args(BenchmarkName))
    assert len(LAYOUTS) == 14
    assert PROMPT_SOURCES["BenchmarkQuestions"] is BenchmarkQuestions


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_layout_of_every_benchmark(tmp_path, write_rows, name, split):
    row, answers = LAYOUTS[name]
    write_rows([row, row], f"{name}.jsonl")
    first, second = BenchmarkQuestions(name, folder=str(tmp_path), system_prompt="Think.").load(split)
    assert (first.text, first.answers, first.source) == ("q?", answers, name)
    assert first.messages[0] == {"role": "system", "content": "Think."}
    assert first.id != second.id


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gaia", "gaia/test.jsonl"),
        ("simpleqa", "SimpleQA/test.jsonl"),
        ("hle", "hle/top.json"),
        ("xbench", "xbench.json"),
    ],
)
def test_files_may_lie_as_they_do_in_the_release(tmp_path, write_rows, name, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    # `top.json` has an object a line whatever its name says; `xbench.json` is a list here.
    path = write_rows([LAYOUTS[name][0]], file.replace("top.json", "top.jsonl"))
    if file.endswith("top.json"):
        (tmp_path / "hle/top.jsonl").rename(tmp_path / file)
        path = str(tmp_path / file)
    (question,) = BenchmarkQuestions(name, folder=str(tmp_path)).load("test")
    assert question.origin == path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_says_where_to_get_it(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        BenchmarkQuestions(name, folder=str(tmp_path)).load("test")
    assert f"folder must hold the benchmark {name} as one of {tmp_path}/{name}.jsonl" in str(error.value)
    assert "get it from" in str(error.value)
    assert "https://" in str(error.value)


def test_another_number_of_questions_is_told(tmp_path, write_rows, caplog):
    row = LAYOUTS["aime24"][0]
    write_rows([row] * 29, "aime24.jsonl")
    with caplog.at_level(logging.WARNING):
        BenchmarkQuestions("aime24", folder=str(tmp_path)).load("test")
    assert "the file of aime24 has 29 questions, that of the authors 30: results do not compare" in caplog.text
    caplog.clear()
    write_rows([row] * 30, "aime24.jsonl")
    BenchmarkQuestions("aime24", folder=str(tmp_path)).load("test")
    assert not caplog.text


@pytest.mark.parametrize("name", ["hle", "gaia", "xbench"])
def test_text_that_must_not_spread_is_not_quoted(tmp_path, write_rows, name):
    key = "Question" if name == "gaia" else "question"
    write_rows([{key: "CANARY", "answer": {"CANARY": 1}}], f"{name}.jsonl")
    (row,) = BenchmarkQuestions(name, folder=str(tmp_path)).rows("test")
    assert isinstance(row, UnusableRow)
    assert "answer in line 1 of" in row.message
    assert "CANARY" not in row.message


def test_a_benchmark_is_not_trained_on(tmp_path):
    with pytest.raises(ValueError, match="the benchmark math must not be trained on, got the train split"):
        BenchmarkQuestions("math", folder=str(tmp_path)).load("train")
    assert BenchmarkQuestions("math").splits == ("validation", "test")
    with pytest.raises(ValueError, match=r"name must be one of aime24, .* got 'aime23'"):
        BenchmarkQuestions("aime23")
