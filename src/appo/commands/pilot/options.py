"""What a pilot study is asked for, beside the configuration of the policy and its task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appo.prompts import Split
from appo.scorers import Oracle


@dataclass(frozen=True)
class StudyOptions:
    """How much is measured, and where it goes.

    Attributes:
        questions: measured, at most.
        roots: trajectories of each whose decisions are measured.
        positions: decisions of each question.
        continuations: of each decision.
        split: that the questions are of.
        influence: import path of a function that knows the influence of every token.
        at_once: questions that are sampled together.
        out: folder.

    Raises:
        ValueError: if a number is out of range, or there is no such function.
    """

    questions: int
    roots: int
    positions: int
    continuations: int
    split: Split
    influence: str | None
    at_once: int
    out: Path

    def __post_init__(self) -> None:
        least = {"questions": 1, "roots": 1, "positions": 1, "continuations": 4, "at_once": 1}
        for name, number in least.items():
            if (value := getattr(self, name)) < number:
                raise ValueError(f"{name} must be at least {number}, got {value}")
        if self.influence is not None:
            try:
                Oracle(self.influence)
            except ValueError as error:
                raise ValueError(f"influence: {error}") from error
