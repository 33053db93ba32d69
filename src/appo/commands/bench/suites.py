"""Which benchmarks belong together, and what the paper reports of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from appo.commands.recipes import FOLDER
from appo.core.registry import did_you_mean
from appo.prompts import BENCHMARKS

MATHEMATICS = ("aime24", "aime25", "math500", "gsm8k", "math")
QUESTIONS = ("webwalker", "hotpotqa", "2wiki", "musique", "bamboogle")
SEARCH = ("gaia", "webwalker", "hle", "xbench")

SUITES: Mapping[str, tuple[str, ...]] = {
    "reasoning": (*MATHEMATICS, *QUESTIONS),
    "search": SEARCH,
    "paper": (*MATHEMATICS, *QUESTIONS, "gaia", "hle", "xbench"),
}
"""Benchmarks by suite: the ten of the paper's table on reasoning, the four of that on deep search, and all of them."""

PHRASES = frozenset({*SEARCH, "simpleqa"})
"""Benchmarks whose answers have many right wordings, for which the field asks a judge."""

TITLES: Mapping[str, str] = {
    "aime24": "AIME24",
    "aime25": "AIME25",
    "math500": "MATH500",
    "gsm8k": "GSM8K",
    "math": "MATH",
    "webwalker": "WebWalker",
    "hotpotqa": "HotpotQA",
    "2wiki": "2Wiki",
    "musique": "MuSiQue",
    "bamboogle": "Bamboogle",
    "gaia": "GAIA",
    "hle": "HLE",
    "xbench": "xbench",
    "simpleqa": "SimpleQA",
}


class Reported(NamedTuple):
    """A row of a table of the paper (arXiv 2606.12384).

    Attributes:
        model: that was trained.
        method: that it was trained with.
        values: accuracy in percent by benchmark, of single runs.
        average: over all benchmarks of the suite, in percent; None where the paper's is not known here.
    """

    model: str
    method: str
    values: Mapping[str, float]
    average: float | None


def _search(model: str, method: str, *values: float) -> Reported:
    return Reported(model, method, dict(zip(SEARCH, values, strict=True)), None)


REPORTED: Mapping[str, tuple[Reported, ...]] = {
    "reasoning": (
        Reported("Llama3.1-8B", "GRPO", {}, 51.1),
        Reported("Llama3.1-8B", "ARPO", {}, 55.3),
        Reported("Llama3.1-8B", "APPO", {}, 57.4),
        Reported("Qwen2.5-7B", "GRPO", {}, 56.5),
        Reported("Qwen2.5-7B", "ARPO", {}, 58.3),
        Reported("Qwen2.5-7B", "APPO", {}, 62.2),
    ),
    "search": (
        _search("Qwen3-8B", "GRPO", 32.0, 30.0, 7.8, 20.0),
        _search("Qwen3-8B", "ARPO", 38.8, 32.0, 8.8, 25.0),
        _search("Qwen3-8B", "APPO", 42.7, 33.8, 13.4, 28.0),
    ),
}
"""Rows of the paper's tables by suite."""


def configs_of(suite: str) -> dict[str, Path]:
    """The config of every benchmark that is asked for, by its name.

    Args:
        suite: suites, benchmarks, and YAML files in the form of ``configs/benchmarks``, with commas between.

    Raises:
        ValueError: if there is nothing of such a name, or two files have one name.
    """
    configs: dict[str, Path] = {}
    for word in filter(None, (word.strip() for word in suite.split(","))):
        if word in SUITES or word in BENCHMARKS:
            found = {name: FOLDER / f"benchmarks/{name}.yaml" for name in SUITES.get(word, (word,))}
        elif Path(word).is_file():
            found = {Path(word).stem: Path(word)}
        else:
            known = [*SUITES, *BENCHMARKS]
            raise ValueError(
                f"suite must name suites, benchmarks ({', '.join(known)}) or YAML files, "
                f"got {word!r}{did_you_mean(word, known)}"
            )
        if twice := [name for name, path in found.items() if configs.get(name, path) != path]:
            raise ValueError(f"suite must name one config a benchmark, got two for {twice[0]}")
        configs |= found
    if not configs:
        raise ValueError(f"suite must name a benchmark, got {suite!r}")
    return configs
