"""What exactly is asked and how it is graded, in a file that two people can compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from appo.commands.bench.callback import Benchmark
from appo.commands.installed import installed_version
from appo.commands.record.fingerprints import fingerprint
from appo.commands.record.record import differences
from appo.core.trajectory import Prompt
from appo.prompts import BenchmarkQuestions

_GRADERS = ("appo", "math-verify")
"""Packages that decide what is right."""

_INFORMATIVE = ("file",)
"""What may differ between two panels: the same questions in another file are the same questions."""

_MOST_DIFFERENCES = 5


@dataclass(frozen=True)
class Panel:
    """Questions, order, seeds and graders.

    Attributes:
        benchmarks: by name: the fingerprint of its `file`, number of `questions`, the SHA-256 of ids, texts and
            accepted answers in their `order`, `samples` of each, how they are drawn, and the `reward`.
        seed: of everything sampled.
        graders: versions of packages that decide what is right.
    """

    benchmarks: Mapping[str, Mapping[str, Any]]
    seed: int
    graders: Mapping[str, str]

    @classmethod
    def of(cls, benchmarks: Sequence[Benchmark], seed: int) -> Panel:
        """Of benchmarks whose questions are loaded.

        Args:
            benchmarks: that are asked.
            seed: of everything sampled.
        """
        return cls(
            {benchmark.name: _entry(benchmark) for benchmark in benchmarks},
            seed,
            {name: installed_version(name) for name in _GRADERS},
        )

    @classmethod
    def read(cls, path: Path) -> Panel:
        """Of a file that `write` wrote.

        Raises:
            ValueError: if it is none.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"panel must name a panel.json of appo bench, got {path}: {error}") from error

    def write(self, path: Path) -> None:
        """Writes it for others."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def check(self, wanted: Panel) -> None:
        """Makes sure that others, who have `wanted`, ask and grade the same.

        Raises:
            ValueError: if anything differs of the benchmarks that are asked here.
        """
        mine, theirs = self._compared(self.benchmarks), wanted._compared(self.benchmarks)
        if lines := differences(theirs, mine):
            more = f"; and {len(lines) - _MOST_DIFFERENCES} more" if len(lines) > _MOST_DIFFERENCES else ""
            raise ValueError(f"panel must ask the same as this run, but {'; '.join(lines[:_MOST_DIFFERENCES])}{more}")

    def _compared(self, names: Mapping[str, Any]) -> dict[str, Any]:
        entries = {name: self.benchmarks[name] for name in names if name in self.benchmarks}
        kept = {
            name: {key: value for key, value in entry.items() if key not in _INFORMATIVE}
            for name, entry in entries.items()
        }
        return {"benchmarks": kept, "seed": self.seed, "graders": dict(self.graders)}


def order_digest(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of ids, texts and accepted answers of questions, in their order."""
    digest = sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.question, prompt.answers]).encode())
    return digest.hexdigest()


def _entry(benchmark: Benchmark) -> dict[str, Any]:
    source = benchmark.data.source
    reward = benchmark.reward.reward
    return {
        "file": fingerprint(source.file()) if isinstance(source, BenchmarkQuestions) else None,
        "questions": len(benchmark.prompts),
        "order": order_digest(benchmark.prompts),
        **asdict(benchmark.evaluation),
        "reward": type(reward).__name__,
        "reward_options": benchmark.reward_options,
    }
