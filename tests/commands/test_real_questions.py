"""The files of a run with real questions, made of rows in the form of the published ones."""

from __future__ import annotations

import json

from appo.sft import FileConversations
from benchmarks.real_questions import computed, write_all

MATHS = [
    {"question": f"What is {i} plus 2, twice?", "answer": f"It is {i} + 2 = $<<{i}+2={i + 2}>>{i + 2}.\n"
     f"Twice that, {i + 2} * 2 = <<{i + 2}*2={2 * i + 4}>>{2 * i + 4} in all.\n#### {2 * i + 4}"}
    for i in range(20)
]  # fmt: skip
FACTS = [
    {"question": f"Who lives in Town{i}?", "answer": f"Name{i}", "supporting_facts": {"title": [f"Town{i}"] * 2},
     "context": {"title": [f"Town{i}", "Rome"], "sentences": [["A town.", f" Name{i} lives there."], ["It is old."]]}}
    for i in range(20)
]  # fmt: skip


def written(tmp_path):
    for name, rows in (("maths", MATHS), ("facts", FACTS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_all(tmp_path / "out", tmp_path / "maths", tmp_path / "facts")
    return tmp_path / "out/data"


def test_the_steps_of_a_solution_become_calls_with_their_results():
    assert computed(MATHS[1]["answer"]) == (
        "<think> It is 1 + 2 </think><python> print(1+2) </python> <result>\n3\n</result>"
        "<think> Twice that, 3 * 2 </think><python> print(3*2) </python> <result>\n6\n</result>"
        "<answer> \\boxed{ 6 } </answer>"
    )
    assert computed("It is clear.\n#### 6") is None


def test_every_question_is_shown_trained_on_or_measured(tmp_path):
    data = written(tmp_path)
    shown = [one.messages[1].content for one in FileConversations(train=str(data / "start.jsonl")).load("train")]
    files = [data / "train.jsonl", data / "benchmarks/gsm8k.jsonl", data / "benchmarks/hotpotqa.jsonl"]
    others = [json.loads(line)["question"] for file in files for line in file.read_text().splitlines()]
    assert [len(shown), len(others)] == [28, 12]
    assert sorted(shown + others) == sorted(row["question"] for row in [*MATHS, *FACTS])


def test_a_title_is_searched_and_its_passage_found(tmp_path):
    data = written(tmp_path)
    assert len((data / "corpus.jsonl").read_text().splitlines()) == 21
    looked_up = [line for line in (data / "start.jsonl").read_text().splitlines() if "Who lives in Town5?" in line]
    (response,) = (json.loads(line)["messages"][2]["content"] for line in looked_up)
    assert response == (
        "<think> Town5 </think><search> Town5 </search> <result>\nPage 1: Town5: A town. Name5 lives there.\n</result>"
        "<answer> \\boxed{ Name5 } </answer>"
    )
