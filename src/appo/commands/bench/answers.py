"""What was measured of a benchmark, question by question, in a folder that a stopped run goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from appo.commands.specified_folder import SpecifiedFolder
from appo.core.trajectory import RewardResult, Trajectory
from appo.distributed import comm
from appo.monitoring.evaluation_metrics import EvaluationMetrics, Moments
from appo.monitoring.trajectory_files import append_trajectories
from appo.training.callbacks.recording import evaluated_record


@dataclass(frozen=True)
class Answered:
    """A question with all of its samples.

    Attributes:
        id: of its prompt.
        accuracies: of each sample; none where the reward does not tell.
        num_tokens: that were sampled for each.
        num_calls: of tools, for each.
        metrics: what the metrics of the benchmark are computed from, by name.
    """

    id: str
    accuracies: tuple[float, ...]
    num_tokens: tuple[int, ...]
    num_calls: tuple[int, ...]
    metrics: Mapping[str, Moments]

    @classmethod
    def of(cls, samples: Sequence[tuple[Trajectory, RewardResult]]) -> Answered:
        """Of the samples of one question, with what the reward says of them."""
        metrics = EvaluationMetrics()
        metrics.update(samples)
        return cls(
            samples[0][0].prompt.id,
            tuple(result.parts["accuracy"] for _, result in samples if "accuracy" in result.parts),
            tuple(int(trajectory.response_mask.sum()) for trajectory, _ in samples),
            tuple(len(trajectory.tool_calls) for trajectory, _ in samples),
            metrics.moments(),
        )


class _Written(NamedTuple):
    """How far the trajectories of a process are written.

    Attributes:
        size: bytes of their file.
        next_id: number of trajectories in it.
    """

    size: int
    next_id: int


class AnswerFolder(SpecifiedFolder):
    """The folder of a benchmark: ``answers.jsonl``, a question a line, and ``trajectories/``.

    Args:
        path: of the folder.
        specification: every option that decides about the results, by dotted key.

    Raises:
        ValueError: if it holds something else.
    """

    def __init__(self, path: Path, specification: Mapping[str, Any]) -> None:
        super().__init__(path, specification, "answers")
        self._written: _Written | None = None

    def read(self) -> list[Answered]:
        """The questions so far, of all processes."""
        return [_answered(record) for record in self.records()]

    def append(self, questions: Sequence[Sequence[tuple[Trajectory, RewardResult]]], saves: bool) -> None:
        """Adds questions, this process's own.

        Args:
            questions: all samples of each.
            saves: whether their trajectories are written; they are there before the questions are.
        """
        rank = comm.rank()
        if self._written is None:
            own = self.records(rank)
            self._written = _Written(**own[-1]["written"]) if own else _Written(0, 0)
        size, first_id = self._written
        pairs = [pair for samples in questions for pair in samples]
        if saves:
            file = f"trajectories/test_00000{f'_rank_{rank:05d}' if rank else ''}.jsonl.zst"
            numbered = enumerate(pairs, first_id)
            lines = ({"id": i, "parent_id": None, **evaluated_record(*pair)} for i, pair in numbered)
            size = append_trajectories(self.path / file, lines, size)
        self._written = _Written(size, first_id + len(pairs))
        place = {"written": self._written._asdict()}
        self.append_records([{**asdict(Answered.of(samples)), **place} for samples in questions], rank)


def _answered(record: Mapping[str, Any]) -> Answered:
    return Answered(
        record["id"],
        tuple(record["accuracies"]),
        tuple(record["num_tokens"]),
        tuple(record["num_calls"]),
        {name: Moments(**values) for name, values in record["metrics"].items()},
    )
