"""Writes the files of a small run with real questions and both tools: GSM8K and HotpotQA.

``python -m benchmarks.real_questions --gsm8k FILE --hotpotqa FILE --out FOLDER`` writes ``data/`` into the folder:
conversations that compute GSM8K's steps in Python and look up HotpotQA's passages, questions to train on, questions to
measure, none of them twice, and the passages as a corpus. `--gsm8k` is a file of
https://github.com/openai/grade-school-math, `--hotpotqa` has rows of HotpotQA's development set with their paragraphs
(`context`) as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from appo.tools import BM25Search
from benchmarks.rehearsal import write_lines

SYSTEM = (
    "Solve the question step by step. Think between <think> and </think>. <python> code </python> computes and "
    "<search> query </search> looks up; results come between <result> and </result>. The answer stands in <answer> "
    "\\boxed{ ... } </answer>."
)
MEASURED, SHOWN = 0.1, 0.7
"""Shares of the questions of each file that are measured, and shown in conversations; the rest is trained on."""

_PASSAGE_WORDS = 40
_STEP = re.compile(r"<<([^=<>]+)=([^<>]+)>>")


def computed(answer: str) -> str | None:
    """What a response makes of GSM8K's solution: each step a thought, a call and its result; None if it has none."""
    *lines, final = answer.split("\n")
    parts, thought = [], ""
    for line in lines:
        thought = f"{thought} {line}".strip()
        if (step := _STEP.search(line)) is None:
            continue
        said = _STEP.sub("", thought[: thought.index("<<")]).rstrip(" =$")
        call = f"<python> print({step[1].strip()}) </python> <result>\n{step[2].strip()}\n</result>"
        parts.append(f"<think> {said} </think>{call}")
        thought = ""
    if not parts:
        return None
    return "".join(parts) + f"<answer> \\boxed{{ {final.removeprefix('####').strip()} }} </answer>"


def looked_up(row: dict[str, Any], search: BM25Search) -> str:
    """What a response makes of HotpotQA's supporting passages: each is searched by its title."""
    parts = []
    for title in dict.fromkeys(row["supporting_facts"]["title"]):
        (passage,) = search.search(title, 1)
        parts.append(f"<think> {title} </think><search> {title} </search> <result>\nPage 1: {passage}\n</result>")
    return "".join(parts) + f"<answer> \\boxed{{ {row['answer']} }} </answer>"


def passages(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Every paragraph once, its title before its first words."""
    texts = {}
    for row in rows:
        for title, sentences in zip(row["context"]["title"], row["context"]["sentences"], strict=True):
            texts[title] = " ".join(f"{title}: {''.join(sentences)}".split()[:_PASSAGE_WORDS])
    return [{"text": text} for text in texts.values()]


def write_all(out: Path, gsm8k: Path, hotpotqa: Path) -> None:
    """Writes all files of the run.

    Args:
        out: folder; the run begins in it.
        gsm8k: JSON lines with `question` and `answer`, whose steps stand in ``<<...>>``.
        hotpotqa: JSON lines with `question`, `answer`, `context` and `supporting_facts`.
    """
    data = out / "data"
    maths, facts = _read(gsm8k), _read(hotpotqa)
    write_lines(data / "corpus.jsonl", passages(facts))
    search = BM25Search(corpus=str(data / "corpus.jsonl"))
    search.start()
    try:
        shown = [(row, computed(row["answer"])) for row in _part(maths, MEASURED, MEASURED + SHOWN)]
        shown += [(row, looked_up(row, search)) for row in _part(facts, MEASURED, MEASURED + SHOWN)]
    finally:
        search.stop()
    random.Random(0).shuffle(shown)
    conversations = [
        {"messages": [*_asked(row), {"role": "assistant", "content": response}]} for row, response in shown if response
    ]
    write_lines(data / "start.jsonl", conversations)
    trained = [*_part(maths, MEASURED + SHOWN, 1.0), *_part(facts, MEASURED + SHOWN, 1.0)]
    write_lines(data / "train.jsonl", [_question(row) for row in trained])
    write_lines(data / "benchmarks/gsm8k.jsonl", _part(maths, 0.0, MEASURED))
    write_lines(data / "benchmarks/hotpotqa.jsonl", [_question(row) for row in _part(facts, 0.0, MEASURED)])


def _asked(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["question"]}]


def _question(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answer": row["answer"].rpartition("####")[2].strip()}


def _part(rows: list[dict[str, Any]], begin: float, end: float) -> list[dict[str, Any]]:
    return rows[round(begin * len(rows)) : round(end * len(rows))]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_questions", description=__doc__)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--hotpotqa", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_all(options.out, options.gsm8k, options.hotpotqa)


if __name__ == "__main__":
    main()
