"""The benchmarks of the field, read from files in the layout of the authors' evaluation data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split, UnusableRow, only_usable
from appo.prompts.files import JsonlQuestions, JsonQuestions

log = logging.getLogger(__name__)

BenchmarkName = Literal[
    "aime24",
    "aime25",
    "math500",
    "gsm8k",
    "math",
    "hotpotqa",
    "2wiki",
    "musique",
    "bamboogle",
    "webwalker",
    "gaia",
    "hle",
    "xbench",
    "simpleqa",
]

_RELEASE = "evaluation/data/{folder} of the authors' release (https://github.com/AMAP-ML/APPO)"


@dataclass(frozen=True)
class Benchmark:
    """How the file of a benchmark is laid out.

    Attributes:
        num_rows: questions in the file that the authors measured with.
        question_key: key of the question; answers are under `answer` everywhere.
        answer_pattern: regular expression whose last match is the answer; None takes the field as it is.
        folder: its folder in the authors' release.
        files: further names of the file, relative to the folder of all benchmarks.
        where: where to get it.
        is_public: whether its text may be quoted; False where the makers ask to keep it off the public web.
    """

    num_rows: int
    question_key: str = "question"
    answer_pattern: str | None = None
    folder: str = ""
    files: tuple[str, ...] = ()
    where: str = _RELEASE
    is_public: bool = True


BENCHMARKS: dict[BenchmarkName, Benchmark] = {
    "aime24": Benchmark(30),
    "aime25": Benchmark(30, "problem"),
    "math500": Benchmark(500),
    "gsm8k": Benchmark(
        1319,
        answer_pattern=r"####\s*(\S.*)",
        where="grade_school_math/data/test.jsonl of https://github.com/openai/grade-school-math",
    ),
    "math": Benchmark(
        5000,
        "problem",
        where="the test split of MATH (https://github.com/hendrycks/math), one JSON object a line with `problem` and, "
        r"as `answer`, what its solution has in \boxed",
    ),
    "hotpotqa": Benchmark(200),
    "2wiki": Benchmark(200),
    "musique": Benchmark(200),
    "bamboogle": Benchmark(125),
    "webwalker": Benchmark(680),
    "gaia": Benchmark(103, "Question", is_public=False),
    "hle": Benchmark(
        500,
        files=("hle/top.json",),
        where="https://huggingface.co/datasets/cais/hle (access on request), its text-only questions as JSON lines "
        "with `question` and `answer`",
        is_public=False,
    ),
    "xbench": Benchmark(100, is_public=False),
    "simpleqa": Benchmark(500, folder="SimpleQA"),
}
"""The fourteen benchmarks by name."""

assert set(BENCHMARKS) == set(get_args(BenchmarkName))


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class BenchmarkQuestions(PromptSource):
    """The questions of a benchmark, as validation or test split; its file holds JSON lines or a JSON list."""

    name: BenchmarkName
    """The benchmark."""
    folder: str = "data/benchmarks"
    """Folder with the files ``<name>.jsonl`` or, as in the authors' evaluation data, ``<name>/test.jsonl``."""
    system_prompt: str | None = None
    """System message of every conversation, unless `data.system_prompt` is set; `null`: none."""
    save_text: bool | None = None
    """Whether the trajectories that an evaluation saves hold questions, answers and responses; `null`: as the makers
    ask, not for gaia, hle and xbench."""

    def __post_init__(self) -> None:
        if self.name not in BENCHMARKS:
            raise ValueError(f"name must be one of {', '.join(BENCHMARKS)}, got {self.name!r}")

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("validation", "test")

    @property
    def evaluation_splits(self) -> tuple[Split, ...]:
        return ("test",)  # the same questions are the validation split

    def load(self, split: Split) -> list[Question]:
        return only_usable(self.rows(split))

    def rows(self, split: Split) -> Iterator[Question | UnusableRow]:
        if split not in self.splits:
            raise ValueError(f"the benchmark {self.name} must not be trained on, got the {split} split")
        num_rows = 0
        for row in self._source().rows("test"):
            num_rows += 1
            yield self._named(row) if isinstance(row, Question) else row
        if num_rows != BENCHMARKS[self.name].num_rows:
            log.warning(
                "the file of %s has %d questions, that of the authors %d: results do not compare",
                self.name,
                num_rows,
                BENCHMARKS[self.name].num_rows,
            )

    def file(self) -> Path:
        """The benchmark's file.

        Raises:
            FileNotFoundError: if it is missing; says where to get it.
        """
        benchmark = BENCHMARKS[self.name]
        folder = benchmark.folder or self.name
        names = [f"{self.name}.jsonl", f"{self.name}.json", f"{self.name}/test.jsonl", f"{folder}/test.jsonl"]
        paths = [Path(self.folder).expanduser() / name for name in (*names, *benchmark.files)]
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"folder must hold the benchmark {self.name} as one of {', '.join(dict.fromkeys(map(str, paths)))}, got "
            f"none; get it from {benchmark.where.format(folder=folder)}"
        )

    def _named(self, question: Question) -> Question:
        is_public = question.is_public if self.save_text is None else self.save_text
        return replace(question, source=self.name, is_public=is_public)

    def _source(self) -> PromptSource:
        path, benchmark = self.file(), BENCHMARKS[self.name]
        with path.open("rb") as file:
            is_list = file.read(4096).lstrip().startswith(b"[")
        return (JsonQuestions if is_list else JsonlQuestions)(
            test=str(path),
            question_key=benchmark.question_key,
            answer_pattern=benchmark.answer_pattern,
            system_prompt=self.system_prompt,
            quote_rows=benchmark.is_public,
        )
