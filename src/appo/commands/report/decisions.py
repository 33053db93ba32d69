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


def decision_blocks(run: Path, tests: tuple[Path, Path] | None, decode: Decode) -> list[Block]:
    """Right decisions before and after, where branches left, and the credit that they earned.

    Args:
        run: folder of an ``appo fit``.
        tests: folders of an ``appo test`` of the policy it started from, and of the one it ended with; None if there
            are none.
        decode: by the policy's tokenizer.

    Returns:
        Nothing where the source knows no decisions; where it cannot be had, such as that of a module of the user's that
        lies elsewhere, the reason.

    Raises:
        FileNotFoundError: if the run has no config.
    """
    path, config = config_of_run([run], "run must be the folder of an appo fit")
    PROMPT_SOURCES.load_plugins()
    try:
        source: PromptSource = instantiate(path, config, "data.source", PromptSource, "a source of questions")
    except ValueError as error:
        return [Text(f"The tokens that decide are not known, since {str(error).partition(chr(10))[0]}")]
    if type(source).decisions is PromptSource.decisions:
        return []

    @cache
    def text_of(token_id: int) -> str:
        return decode([token_id])

    def find(trajectory: SavedTrajectory) -> Sequence[Decision]:
        tokens = [text_of(token_id) for token_id in trajectory["token_ids"]]
        mask = [bool(sampled) for sampled in trajectory["response_mask"]]
        return source.decisions(trajectory["prompt"]["question"], tokens, mask)

    blocks: list[Block] = []
    if tests is not None:
        blocks.append(_share_table(*(right_shares(_read(folder, "test"), find) for folder in tests)))
    return [*blocks, Text(_EXPLANATION), _tree_table(Trees.of(_read(run, "iteration"), find))]


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

    @classmethod
    def of(cls, trajectories: Iterable[SavedTrajectory], find: Find) -> Trees:
        """Counts; within an iteration records follow their parents, and take the place of those of earlier ones."""
        trees = cls()
        kinds: dict[int, list[str | None]] = {}
        for trajectory in trajectories:
            of_token = kinds[trajectory["id"]] = kinds_of_tokens(trajectory, find)
            first_own = 0
            if trajectory["parent_id"] is not None:
                first_own = trajectory["branch_position"] + 1
                taken = kinds[trajectory["parent_id"]][first_own : first_own + 1]
                trees.branched[(taken or [None])[0] or OTHER] += 1
            for kind, advantage in zip(of_token[first_own:], trajectory["advantages"][first_own:], strict=True):
                if kind is not None:
                    trees.sampled[kind] += 1
                    if advantage:
                        trees.advantages[kind].append(advantage)
        return trees


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


def _read(folder: Path, stage: str) -> Iterator[SavedTrajectory]:
    for step in steps_in(folder):
        if step.stage == stage:
            yield from records_of(step)
