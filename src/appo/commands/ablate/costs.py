"""What the training of a run took, as its log has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOKENS = "rollout/generated_tokens_total"


@dataclass(frozen=True)
class Costs:
    """What a training took, all of its iterations together.

    Attributes:
        tokens: that were generated.
        steps: of the optimizer, those included that had no gradient.
        trained_tokens: of the sequences that went through the policy forth and back, prompts and tool output included.
        training_s: seconds of the iterations, evaluations not included.
        tool_calls: that were made.
        largest_iteration: generated tokens of the iteration that has most of them.
    """

    tokens: float
    steps: float
    trained_tokens: float
    training_s: float
    tool_calls: float
    largest_iteration: float

    @classmethod
    def of(cls, history: Sequence[Mapping[str, float]]) -> Costs:
        """Adds up the metrics of every iteration.

        Args:
            history: metrics of at least one iteration, in order.
        """

        def total(name: str) -> float:
            return sum(row.get(name, 0.0) for row in history)

        return cls(
            tokens=history[-1][TOKENS],
            steps=history[-1]["step"] + 1,
            trained_tokens=total("train/tokens"),
            training_s=total("rollout/iteration_s") - total("rollout/evaluation_s"),
            tool_calls=total("rollout/calls_made"),
            largest_iteration=max(row.get("rollout/generated_tokens", 0.0) for row in history),
        )

    @property
    def tokens_per_step(self) -> float:
        """Generated tokens behind an optimizer step."""
        return self.tokens / self.steps
