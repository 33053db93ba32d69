"""What a pilot study has measured, question by question, in a file that a stopped study goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from appo.commands.specified_folder import SpecifiedFolder

FORMAT = 2
"""Of what is written, and of how often which decision is drawn: a study of another format cannot go on."""


@dataclass(frozen=True)
class Decision:
    """A sampled token of a root, drawn anew by `K` continuations with all that follows.

    Attributes:
        root: number of the trajectory.
        position: of the token, prompt included.
        depth: share of the root's sampled tokens that come before.
        part: of the response that the token stands in: `thought`, `call`, `answer` or `other`.
        token_id: that the root has there.
        text: of that token; empty where the prompt is not public.
        known: its influence, where an environment can tell.
        tokens: ``K`` that were drawn in its place; more of them where the policy was not sure.
        rewards: ``K`` of the continuations.
        halves: ``K``, 0 or 1: which half of the continuations of its question each belongs to.
        right: ``K``, whether the answer was right; empty where the reward does not tell.
    """

    root: int
    position: int
    depth: float
    part: str
    token_id: int
    text: str
    known: float | None
    tokens: tuple[int, ...]
    rewards: tuple[float, ...]
    halves: tuple[int, ...]
    right: tuple[bool, ...]

    def half(self, number: int) -> Decision:
        """The decision as one half of the continuations shows it."""
        is_in = [half == number for half in self.halves]
        return replace(
            self,
            tokens=tuple(compress(self.tokens, is_in)),
            rewards=tuple(compress(self.rewards, is_in)),
            halves=tuple(compress(self.halves, is_in)),
            right=tuple(compress(self.right, is_in)),
        )


@dataclass(frozen=True)
class ScoreColumn:
    """What one scorer says of the decisions of a question.

    Attributes:
        values: a score each; None where no branch may start.
        preferred: whether a decision is taken before others; empty if none is preferred.
    """

    values: tuple[float | None, ...]
    preferred: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Question:
    """All that was measured of one question.

    Attributes:
        id: of its prompt.
        source: of its prompt.
        root_rewards: of the trajectories whose decisions are measured.
        decisions: in the order of roots and positions.
        scores: by the name of the scorer.
        skipped: why others have none, by their names.
        num_continuations: trajectories that were sampled; each draws all decisions that it comes upon.
        num_tokens: that were sampled, roots included.
        seconds: that it took, its share of what several questions took together.
    """

    id: str
    source: str
    root_rewards: tuple[float, ...]
    decisions: tuple[Decision, ...]
    scores: Mapping[str, ScoreColumn]
    skipped: Mapping[str, str]
    num_continuations: int
    num_tokens: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class StudyFolder(SpecifiedFolder):
    """The folder of a study, which holds questions of one specification.

    Args:
        path: of the folder.
        specification: every option that decides about the results, by dotted key.

    Raises:
        ValueError: if it holds something else.
    """

    def __init__(self, path: Path, specification: Mapping[str, Any]) -> None:
        super().__init__(path, specification, "questions")

    def read(self) -> list[Question]:
        """The questions so far."""
        return [_question(record) for record in self.records()]

    def append(self, questions: Sequence[Question]) -> None:
        """Adds questions."""
        self.append_records([asdict(question) for question in questions])


def _question(record: Mapping[str, Any]) -> Question:
    decisions = tuple(Decision(**_with_tuples(decision)) for decision in record["decisions"])
    scores = {name: ScoreColumn(**_with_tuples(column)) for name, column in record["scores"].items()}
    return Question(**{**_with_tuples(record), "decisions": decisions, "scores": scores})


def _with_tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
