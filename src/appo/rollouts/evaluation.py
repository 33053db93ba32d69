"""Metrics over evaluated trajectories."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchmetrics import MeanMetric

from appo.trajectory import Outcome, Trajectory

Evaluated = Sequence[tuple[Trajectory, Outcome]]
"""Finished trajectories with what the reward says of them."""


class EvaluationMetrics(nn.Module):
    """Means over trajectories: reward, its parts, lengths and tool use, and accuracy by source of the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self._means = nn.ModuleDict()

    def update(self, batch: Evaluated) -> None:
        """Takes in finished trajectories."""
        for trajectory, outcome in batch:
            values = {
                "reward": outcome.reward,
                **outcome.parts,
                "response_length": float(trajectory.response_length),
                "tool_calls": float(len(trajectory.tool_calls)),
                "tool_failures": float(sum(call.failure is not None for call in trajectory.tool_calls)),
                "finished": float(trajectory.finish_reason == "eos"),
            }
            if trajectory.prompt.source and "accuracy" in outcome.parts:
                values[f"accuracy/{trajectory.prompt.source}"] = outcome.parts["accuracy"]
            for name, value in values.items():
                self._mean(name).update(value)

    def compute(self) -> dict[str, Tensor]:
        """The means since the last `reset`, by name."""
        return {name.replace(":", "."): self._mean(name).compute() for name in sorted(self._means)}

    def reset(self) -> None:
        """Forgets everything."""
        self._means = nn.ModuleDict()

    def _mean(self, name: str) -> MeanMetric:
        key = name.replace(".", ":")  # a module's name must not hold a dot
        if key not in self._means:
            self._means[key] = MeanMetric()
        mean = self._means[key]
        assert isinstance(mean, MeanMetric)
        return mean
