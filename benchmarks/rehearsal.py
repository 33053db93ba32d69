"""Writes the files that a rehearsal of the paper's runs reads, generated ones in the forms of the published ones.

``python -m benchmarks.rehearsal --out FOLDER [--questions N] [--tokenizer FOLDER]`` writes ``data/`` and ``model/``:
training questions as the authors' Parquet, conversations as their JSON lines, every benchmark, a corpus, and an
untrained policy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from appo.policy.saving import save_policy
from appo.sft import FileConversations, TinyPolicy

SYSTEM = (
    "You solve questions step by step. Think between <think> and </think>; <search> query </search> searches, <python> "
    "code </python> computes, and results come between <result> and </result>. The answer stands in <answer> "
    "\\boxed{...} </answer>."
)
FACTS = ("founder", "mayor", "river", "patron", "rival")
"""What the corpus tells of a town."""


@dataclass(frozen=True)
class Exercise:
    """A question with the calls that answer it.

    Attributes:
        question: as the user asks it.
        tool: that answers it, by its tag.
        argument: of the call.
        result: that comes back.
        answer: that is right.
    """

    question: str
    tool: str
    argument: str
    result: str
    answer: str

    @property
    def solution(self) -> str:
        """A response that is right, in tags."""
        call = f"<{self.tool}> {self.argument} </{self.tool}>"
        found = f"<result>\n{self.result}\n</result>"
        return f"<think> {self.tool} helps </think>{call} {found}<answer> \\boxed{{ {self.answer} }} </answer>"


def sum_of(number: int) -> Exercise:
    """An exercise for the interpreter; others for other numbers."""
    left, right = 10 + number, 7 * number % 90
    code = f"print({left} + {right})"
    return Exercise(f"What is {left} plus {right}?", "python", code, str(left + right), str(left + right))


def fact(number: int) -> Exercise:
    """An exercise for the search, about the corpus."""
    kind, town = FACTS[number % len(FACTS)], f"Town{number // len(FACTS)}"
    return Exercise(f"What is the {kind} of {town}?", "search", f"{kind} of {town}", passage(number), f"Name{number}")


def passage(number: int) -> str:
    """The sentence of the corpus that answers `fact`."""
    return f"The {FACTS[number % len(FACTS)]} of Town{number // len(FACTS)} is Name{number}."


Row = Callable[[Exercise, int], dict[str, Any]]


def _plain(question: str = "question", *, many: bool = False, **more: Any) -> Row:
    """Rows with a question and one answer or a list of them, and whatever else the published file has."""
    return lambda one, i: {question: one.question, "answer": [one.answer] if many else one.answer, **more}


def _aime24(one: Exercise, number: int) -> dict[str, Any]:
    row = {"id": str(number), "problem": one.question, "solution": one.solution}
    return {**row, "question": one.question, "answer": one.answer}


BENCHMARKS: dict[str, tuple[Callable[[int], Exercise], Row]] = {
    "aime24/test.jsonl": (sum_of, _aime24),
    "aime25/test.jsonl": (sum_of, lambda one, _: {"problem": one.question, "answer": int(one.answer)}),
    "math500/test.jsonl": (sum_of, _plain()),
    "gsm8k.jsonl": (sum_of, lambda one, _: {"question": one.question, "answer": f"We add.\n#### {one.answer}"}),
    "math/test.jsonl": (sum_of, _plain("problem")),
    "hotpotqa/test.jsonl": (fact, _plain(many=True)),
    "2wiki/test.jsonl": (fact, _plain(many=True)),
    "musique/test.jsonl": (fact, _plain(many=True)),
    "bamboogle/test.jsonl": (fact, _plain(many=True)),
    "webwalker/test.jsonl": (fact, _plain(root_url="https://example.org", info={"lang": "en"})),
    "gaia/test.jsonl": (fact, _plain("Question", Level="1")),
    "hle/top.json": (fact, _plain()),
    "xbench/test.jsonl": (fact, _plain(many=True)),
    "SimpleQA/test.jsonl": (fact, _plain(many=True)),
}
"""The file of each benchmark in the folder of all, what it asks, and its rows."""


def write_benchmarks(folder: Path, num_questions: int) -> None:
    """Writes every benchmark; none asks what another does."""
    for number, (name, (make, row)) in enumerate(BENCHMARKS.items()):
        exercises = [make(number * num_questions + i) for i in range(num_questions)]
        write_lines(folder / name, [row(exercise, i) for i, exercise in enumerate(exercises)])


def training_rows(exercises: Sequence[Exercise], source: str) -> Iterator[dict[str, Any]]:
    """Rows in the layout of the authors' Parquet."""
    for i, one in enumerate(exercises):
        messages = [{"content": SYSTEM, "role": "system"}, {"content": one.question, "role": "user"}]
        yield {
            "data_source": source,
            "prompt": messages,
            "ability": "math" if one.tool == "python" else "qa",
            "reward_model": {"ground_truth": one.answer, "style": "rule"},
            "extra_info": {"index": i, "need_tools_kwargs": True, "question": one.question, "split": "train"},
            "metadata": None,
        }


def write_all(out: Path, num_questions: int, tokenizer: Path | None) -> None:
    """Writes all files of a rehearsal.

    Args:
        out: folder; the runs begin in it, so that they find ``data/`` as the real ones do.
        num_questions: of each benchmark; twice as many are trained on, and four times as many demonstrated.
        tokenizer: folder of a real one; none makes one of the conversations, which is smaller.
    """
    data = out / "data"
    asked = len(BENCHMARKS) * num_questions
    # Behind those of the benchmarks, apart from the first, which must be found and left out.
    free = [exercise for i in range(asked, asked + 3 * num_questions) for exercise in (sum_of(i), fact(i))]
    write_benchmarks(data / "benchmarks", num_questions)
    write_lines(data / "corpus.jsonl", [{"text": passage(i)} for i in range(asked + 3 * num_questions)])
    questions = [sum_of(0), *free[: 2 * num_questions]]
    for name, source in (("train_10k", "DR_grpo_mix"), ("hard_search_1k", "hard_search")):
        pq.write_table(pa.Table.from_pylist([*training_rows(questions, source)]), data / f"{name}.parquet")
    shown = [sum_of(0), *free[2 * num_questions :]]
    conversations = data / "final_5w4_still.jsonl"
    turns = [[{"from": "human", "value": one.question}, {"from": "gpt", "value": one.solution}] for one in shown]
    write_lines(conversations, [{"conversations": turn, "system": SYSTEM} for turn in turns])
    _write_policy(out / "model", conversations, tokenizer)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines, into a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_policy(folder: Path, conversations: Path, tokenizer: Path | None) -> None:
    if tokenizer is None:
        TinyPolicy(FileConversations(train=str(conversations)), hidden_size=64, num_heads=2, max_tokens=16384).build(
            folder
        )
        return
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16384, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    save_policy(Qwen2ForCausalLM(config), words, folder)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rehearsal", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=50, help="of each benchmark")
    parser.add_argument("--tokenizer", type=Path, help="folder of a real tokenizer")
    options = parser.parse_args()
    write_all(options.out, options.questions, options.tokenizer)


if __name__ == "__main__":
    main()
