"""Trees that grow each at its own pace, in one run of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from appo.rollouts.budgets import Budgets
from appo.rollouts.tree import Tree

if TYPE_CHECKING:
    from appo.rollouts.collector import Collector

_POLL_S = 0.02
"""How long a tool is waited for before rewards, and other processes, are looked at."""

_PATIENCE_S = 5.0
"""How long rewards are waited for in the step that asks for them, all together: as long as they take little, what is
generated together does not depend on it."""


class Growth:
    """Branches the tree of a prompt as soon as its trajectories have ended and been rewarded.

    The engine goes on with the other prompts in between: it waits only for the last trajectory of all. What is sampled
    is what would be if all trees took each round at the same time. With ``spare_budget: others`` a tree gets, of the
    branches that others leave to it, those that it is sure of, and the rest when all are known: those of all processes,
    of which each grows its own trees at its own pace.

    Args:
        collector: takes the steps of a round.
        trees: with their roots, or with what was begun for them.
        iteration: its number, for seeds.
        deterministic: waits for rewards in the step of the engine that ends a tree's trajectories however long they
            take, so that what is generated together does not depend on how fast they are.
    """

    def __init__(self, collector: Collector, trees: Sequence[Tree], iteration: int, deterministic: bool) -> None:
        self._collector = collector
        self._agent = collector.agent
        self._branching = collector.branching
        self._trees = trees
        self._iteration = iteration
        self._deterministic = deterministic
        self._queue = collector.rewards.queue(len(trees) * self._branching.num_trajectories)
        self._scoring: dict[int, Tree] = {}
        """Trees whose trajectories are being scored, by the number of their group."""
        self._growing = list(trees)
        """Trees that are not complete, and not being scored."""
        self._patience_s = _PATIENCE_S
        self._budgets = Budgets([tree.prompt.id for tree in trees], self._branching, deterministic)

    def run(self) -> None:
        """Comes back when all trees are complete, and scored."""
        try:
            while self._growing or self._scoring:
                # Without a shortcut: each of them has its turn.
                if not self._take_up() | self._take_scores() | self._branch():
                    self._wait()
        finally:
            self._queue.close()

    def _take_up(self) -> bool:
        """Has the trajectories of trees of which nothing is in flight scored, and evaluated where a round follows."""
        ended = [tree for tree in self._growing if self._is_final(tree) and all(map(self._agent.has_ended, tree.begun))]
        for tree in ended:
            tree.trajectories += [t for begun in tree.begun for t in self._agent.trajectories(begun)]
            tree.begun.clear()
            self._growing.remove(tree)
            self._scoring[self._queue.submit(tree.unscored)] = tree
        if followed := [tree for tree in ended if len(tree.rounds) < self._collector.num_rounds]:
            self._collector.evaluate(followed)
        return bool(ended)

    def _take_scores(self) -> bool:
        """Begins the next round of trees whose trajectories are scored."""
        begin = perf_counter()
        with self._collector.timer("rewards"):
            groups = self._queue.finished(None if self._deterministic else self._patience_s)
        self._patience_s = max(0.0, self._patience_s - (perf_counter() - begin))
        trees = [self._scoring.pop(group) for group in groups]
        for group, tree in zip(groups, trees, strict=True):
            tree.scored += self._queue.take(group)
        for tree in trees:
            self._collector.rewards_of(tree)  # a failure of one may have ended the others
        for tree in trees:
            if len(tree.rounds) < self._collector.num_rounds:
                self._collector.begin_round(tree, self._iteration)
                self._growing.append(tree)
        return bool(groups)

    def _branch(self) -> bool:
        """Begins the branches that are certain."""
        has_begun = False
        for number in range(self._collector.num_rounds):
            is_open = {tree.prompt.id: tree.rounds[number].is_open for tree in self._trees if len(tree.rounds) > number}
            was_final = self._budgets.is_final(number)
            budgets = self._budgets.of_round(number, is_open)
            # What was begun may then be all of it.
            has_begun |= self._budgets.is_final(number) and not was_final
            for tree in self._growing:
                if len(tree.rounds) == number + 1:
                    requests = self._collector.more_requests(tree, budgets[tree.prompt.id], self._iteration)
                    if requests:
                        tree.begun.append(self._agent.begin(requests, self._collector.sampling))
                        has_begun = True
        return has_begun

    @property
    def _is_sampling(self) -> bool:
        return any(not self._agent.has_ended(begun) for tree in self._growing for begun in tree.begun)

    def _is_final(self, tree: Tree) -> bool:
        """Whether all that a round samples of a tree was begun."""
        return not tree.rounds or self._budgets.is_final(len(tree.rounds) - 1)

    def _wait(self) -> None:
        looks_around = bool(self._scoring) or self._budgets.is_waiting
        if self._is_sampling or (looks_around and not self._agent.is_idle):
            phase = "branching" if all(tree.trajectories for tree in self._trees) else "sampling"
            self._agent.step(phase, _POLL_S if looks_around else None)
        elif self._scoring:
            with self._collector.timer("rewards"):
                self._queue.wait()
        else:
            self._budgets.wait()
