"""What is sampled of a prompt in an iteration: its roots and branches, each with a seed of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from appo.core.seeding import derive_seed
from appo.core.trajectory import BranchPoint, Prompt
from appo.rollouts.branching import Branching
from appo.rollouts.episode import RolloutRequest
from appo.rollouts.tree import Tree


@dataclass(frozen=True)
class RequestMaker:
    """Makes requests whose seeds depend on the prompt and their number alone, whoever samples them, and when.

    Attributes:
        branching: how many roots and branches there are.
        seed: of everything random.
    """

    branching: Branching
    seed: int

    def roots(self, prompts: Sequence[Prompt], iteration: int) -> list[RolloutRequest]:
        """`num_roots` requests a prompt, prompt by prompt."""
        numbers = range(self.branching.num_roots)
        return [self._root(prompt, iteration, number) for prompt in prompts for number in numbers]

    def spare_roots(self, tree: Tree, iteration: int) -> list[RolloutRequest]:
        """Further roots, with ``spare_budget: roots``, of a prompt that has no branches in a round."""
        if self.branching.spare_budget != "roots":
            return []
        first = sum(trajectory.origin is None for trajectory in tree.trajectories)
        number_of = self.branching.num_branches // self.branching.rounds
        return [self._root(tree.prompt, iteration, first + number) for number in range(number_of)]

    def branches(
        self, points: Sequence[BranchPoint], iteration: int, earlier: Sequence[BranchPoint] = ()
    ) -> list[RolloutRequest]:
        """A request a point, prompt by prompt.

        Args:
            points: of one round.
            iteration: its number, for seeds.
            earlier: points of the rounds before.
        """
        numbers = Counter(point.trajectory.prompt.id for point in earlier)
        requests = []
        for point in points:
            prompt = point.trajectory.prompt
            seed = derive_seed(self.seed, "branch", iteration, prompt.id, numbers[prompt.id])
            requests.append(RolloutRequest(prompt, seed, point, self.branching.tool_calls))
            numbers[prompt.id] += 1
        return requests

    def _root(self, prompt: Prompt, iteration: int, number: int) -> RolloutRequest:
        return RolloutRequest(prompt, derive_seed(self.seed, "initial", iteration, prompt.id, number))
