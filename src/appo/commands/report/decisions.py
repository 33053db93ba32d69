"""What was learned at the tokens that decide, where the source of the questions knows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean

from appo.commands.report.document import Block, Table, Text
from appo.commands.report.examples import Decode
from appo.commands.report.records import SavedTrajectory, steps_in
from appo.commands.run_config import config_of_run, instantiate
from appo.commands.view.steps import records_of
from appo.environments.base import Decision
from appo.prompts import PROMPT_SOURCES, PromptSource

Find = Callable[[SavedTrajectory], Sequence[Decision]]
"""The decisions of a trajectory."""


@dataclass
class Decisions:
    """What is known of the tokens that decide.

    Attributes:
        find: tells the decisions of a trajectory; None where the source of the questions knows none.
        unknown: why they cannot be told; empty if they can, or if there are none.
        trees: what became of them, of the iterations that were added.
    """

    find: Find | None = None
    unknown: str = ""
    trees: Trees = field(default_factory=lambda: Trees())

    @classmethod
    def of(cls, run: Path, decode: Decode) -> Decisions:
        """Those of the folder of an ``appo fit``, of no iteration yet.

        Args:
            run: the folder.
            decode: by the policy's tokenizer.

        Raises:
            FileNotFoundError: if the run has no config.
        """
        path, config = config_of_run([run], "run must be the folder of an appo fit")
        PROMPT_SOURCES.load_plugins()
        try:
            source: PromptSource = instantiate(path, config, "data.source", PromptSource, "a source of questions")
        except ValueError as error:  # such as a module of the user's that lies elsewhere
            return cls(
                unknown=f"The tokens that decide are not known, since {str(error).partition(chr(10))[0]}",
            )
        if type(source).decisions is PromptSource.decisions:
            return cls()

        @cache
        def text_of(token_id: int) -> str:
            return decode([token_id])

        def find(trajectory: SavedTrajectory) -> Sequence[Decision]:
            tokens = [text_of(token_id) for token_id in trajectory["token_ids"]]
            mask = [bool(sampled) for sampled in trajectory["response_mask"]]
            return source.decisions(trajectory["prompt"]["question"], tokens, mask)

        return cls(find)

    def add(self, trajectories: Sequence[SavedTrajectory]) -> None:
        """Counts those of an iteration."""
        if self.find is not None:
            self.trees.add(trajectories, self.find)

    def blocks(self, tests: tuple[Path, Path] | None) -> list[Block]:
        """Right decisions before and after, where branches left, and the credit that they earned.

        Args:
            tests: folders of an ``appo test`` of the policy that a run started from, and of the one it ended with; None
                if there are none.

        Returns:
            Nothing where the source knows no decisions; where they cannot be told, the reason.
        """
        if self.find is None:
            return [Text(self.unknown)] if self.unknown else []
        blocks: list[Block] = []
        if tests is not None:
            blocks.append(_share_table(*(right_shares(_tested(folder), self.find) for folder in tests)))
        return [*blocks, Text(_EXPLANATION), _tree_table(self.trees)]


def right_shares(trajectories: Iterable[SavedTrajectory], find: Find) -> dict[str, float]:
    """The share of right decisions, by kind."""
    of_kind: defaultdict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        for decision in find(trajectory):
            of_kind[decision.name].append(decision.is_right)
    return {name: fmean(of_kind[name]) for name in sorted(of_kind)}


OTHER = "other tokens"


@dataclass
class Trees:
    """What became of decisions, and of all other sampled tokens, in training.

    Attributes:
        sampled: number of tokens, by kind.
        branched: number of branches whose first own token takes the place of one, by kind.
        advantages: of trained tokens, by kind.
    """

    sampled: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    branched: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    advantages: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, trajectories: Iterable[SavedTrajectory], find: Find) -> None:
        """Counts those of an iteration, in which records follow their parents."""
        kinds: dict[int, list[str | None]] = {}
        for trajectory in trajectories:
            of_token = kinds[trajectory["id"]] = kinds_of_tokens(trajectory, find)
            first_own = 0
            if trajectory["parent_id"] is not None:
                first_own = trajectory["branch_position"] + 1
                taken = kinds[trajectory["parent_id"]][first_own : first_own + 1]
                self.branched[(taken or [None])[0] or OTHER] += 1
            for kind, advantage in zip(of_token[first_own:], trajectory["advantages"][first_own:], strict=True):
                if kind is not None:
                    self.sampled[kind] += 1
                    if advantage:
                        self.advantages[kind].append(advantage)


def kinds_of_tokens(trajectory: SavedTrajectory, find: Find) -> list[str | None]:
    """What each token is: a right or wrong decision, another sampled token, or None for what was not sampled."""
    kinds: list[str | None] = [OTHER if sampled else None for sampled in trajectory["response_mask"]]
    for decision in find(trajectory):
        kinds[decision.position] = f"{decision.name}, {'right' if decision.is_right else 'wrong'}"
    return kinds


_EXPLANATION = (
    "Tokens that decide, and others, over the iterations that were saved; a branch leaves at the token that it draws "
    "anew."
)


def _share_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    rows = [
        (name, *(f"{shares[name]:.3f}" if name in shares else "-" for shares in (before, after)))
        for name in sorted({*before, *after})
    ]
    return Table(["right decisions, share of all", "before", "after"], rows)


def _tree_table(trees: Trees) -> Table:
    sampled, branched = sum(trees.sampled.values()), sum(trees.branched.values())
    rows = []
    for kind in sorted({*trees.sampled, *trees.branched}, key=lambda kind: (kind == OTHER, kind)):
        advantages = trees.advantages[kind]
        shares = [_share(trees.sampled[kind], sampled), _share(trees.branched[kind], branched)]
        rows.append((kind, *shares, f"{fmean(advantages):+.3f}" if advantages else "-"))
    return Table(["token", "share of sampled tokens", "share of branches that leave there", "mean advantage"], rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _tested(folder: Path) -> Iterator[SavedTrajectory]:
    for step in steps_in(folder):
        if step.stage == "test":
            yield from records_of(step)
