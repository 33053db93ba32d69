"""What may be asked of those who sample trajectories, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from appo.core.trajectory import Trajectory
from appo.engines import SamplingParams
from appo.rollouts.episode import Limits, RolloutRequest


@dataclass(frozen=True)
class SamplingCosts:
    """What sampling took.

    Attributes:
        generating_s: seconds in which the engine had something to generate.
        tools_s: seconds in which it had not, since all trajectories waited for tools.
        num_tokens: that were sampled, those that were dropped behind a call included.
    """

    generating_s: float = 0.0
    tools_s: float = 0.0
    num_tokens: int = 0

    @staticmethod
    def of_all(parts: Sequence[SamplingCosts]) -> SamplingCosts:
        """Of several processes that sample at the same time: all tokens, in the seconds of the slowest."""
        return SamplingCosts(
            max(part.generating_s for part in parts),
            max(part.tools_s for part in parts),
            sum(part.num_tokens for part in parts),
        )


class Agent(Protocol):
    """Samples trajectories with tools: the loop in this thread, or one in a thread of its own."""

    @property
    def is_asynchronous(self) -> bool:
        """Whether what is begun advances while nobody waits for it; the policy may be trained meanwhile."""

    @property
    def limits(self) -> Limits:
        """What one trajectory may use."""

    def begin(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> Any:
        """Begins one trajectory a request, along with whatever was begun before.

        Args:
            requests: at any number; the engine batches what it can.
            sampling: how tokens are drawn.

        Returns:
            What `finish` takes.
        """

    def finish(self, begun: Any) -> list[Trajectory]:
        """The trajectories of one `begin`, in the order of its requests, once they are there."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight."""

    def step(self, phase: str, wait_s: float | None = None) -> None:
        """Brings on what was begun, or waits for a part of it; something must be in flight.

        Args:
            phase: what the seconds count to.
            wait_s: most seconds to wait while nothing is generated; None waits as long as it takes.
        """

    def has_ended(self, begun: Any) -> bool:
        """Whether the trajectories of one `begin` are there, so that `trajectories` may be called."""

    def trajectories(self, begun: Any) -> list[Trajectory]:
        """Those of one `begin` that has ended, in the order of its requests."""

    def run(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Trajectory]:
        """Samples one trajectory a request, in the order of the requests."""

    def sleep(self, weights_follow: bool) -> None:
        """Lets the engine give back memory for a while, as `Engine.sleep`, unless something is in flight."""

    def pop_costs(self) -> SamplingCosts:
        """What sampling took since the last call; with nothing in flight."""
