"""What was learned at the tokens that decide, where the source of the questions knows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from appo.commands.run_config import config_of_run
from appo.environments.base import Decision
from appo.monitoring.trajectory_files import read_trajectories
from appo.prompts.base import PromptSource

SavedTrajectory = Mapping[str, Any]

Decode = Callable[[Sequence[int]], str]

Find = Callable[[SavedTrajectory], Sequence[Decision]]
"""The decisions of a trajectory."""


def decision_section(run: Path, before: Path, after: Path, decode: Decode) -> list[str]:
    """Markdown, by line: right decisions before and after, where branches left, and the credit that they earned.

    Args:
        run: folder of an ``appo fit``.
        before: folder of an ``appo test`` of the policy it started from.
        after: folder of an ``appo test`` of the policy it ended with.
        decode: by the policy's tokenizer.

    Returns:
        Nothing where the source knows no decisions.

    Raises:
        FileNotFoundError: if the run has no config.
    """
    source = _source_of_run(run)
    if type(source).decisions is PromptSource.decisions:
        return []

    @cache
    def text_of(token_id: int) -> str:
        return decode([token_id])

    def find(trajectory: SavedTrajectory) -> Sequence[Decision]:
        tokens = [text_of(token_id) for token_id in trajectory["token_ids"]]
        mask = [bool(sampled) for sampled in trajectory["response_mask"]]
        return source.decisions(trajectory["prompt"]["question"], tokens, mask)

    shares = [right_shares(_read(folder, "test_*"), find) for folder in (before, after)]
    trees = Trees.of(_read(run, "iteration_*"), find)
    return [*_share_table(*shares), *_tree_table(trees)]


def right_shares(trajectories: Iterable[SavedTrajectory], find: Find) -> dict[str, float]:
    """The share of right decisions, by kind."""
    of_kind: defaultdict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        for decision in find(trajectory):
            of_kind[decision.name].append(decision.is_right)
    return {name: fmean(of_kind[name]) for name in sorted(of_kind)}


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
        """Counts; records of an iteration follow their parents."""
        trees = cls()
        kinds: dict[int, list[str | None]] = {}
        for trajectory in trajectories:
            if trajectory["id"] == 0:
                kinds = {}
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


OTHER = "other tokens"


def kinds_of_tokens(trajectory: SavedTrajectory, find: Find) -> list[str | None]:
    """What each token is: a right or wrong decision, another sampled token, or None for what was not sampled."""
    kinds: list[str | None] = [OTHER if sampled else None for sampled in trajectory["response_mask"]]
    for decision in find(trajectory):
        kinds[decision.position] = f"{decision.name}, {'right' if decision.is_right else 'wrong'}"
    return kinds


def _share_table(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    yield from ("## The tokens that decide", "", "| share that is right | before | after |", "|---|---:|---:|")
    for name in sorted({*before, *after}):
        values = (f"{shares[name]:.3f}" if name in shares else "-" for shares in (before, after))
        yield f"| {name} | {' | '.join(values)} |"
    yield ""


def _tree_table(trees: Trees) -> Iterator[str]:
    sampled, branched = sum(trees.sampled.values()), sum(trees.branched.values())
    yield "Over the iterations that were saved; a branch leaves at the token that it draws anew:"
    yield ""
    yield "| token | share of sampled tokens | share of branches that leave there | mean advantage |"
    yield "|---|---:|---:|---:|"
    for kind in sorted({*trees.sampled, *trees.branched}, key=lambda kind: (kind == OTHER, kind)):
        shares = [_share(trees.sampled[kind], sampled), _share(trees.branched[kind], branched)]
        advantages = trees.advantages[kind]
        yield f"| {kind} | {' | '.join(shares)} | {f'{fmean(advantages):+.3f}' if advantages else '-'} |"
    yield ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _read(folder: Path, pattern: str) -> Iterator[SavedTrajectory]:
    for path in sorted((folder / "trajectories").glob(f"{pattern}.jsonl.zst")):
        yield from read_trajectories(path)


def _source_of_run(run: Path) -> PromptSource:
    """The questions that a run was trained on."""
    path, config = config_of_run([run], "run must be the folder of an appo fit")
    source = OmegaConf.select(config, "data.source")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=PromptSource)
    parsed = parser.parse_object({"source": OmegaConf.to_container(source, resolve=True)})
    instance = parser.instantiate(parsed).source
    if not isinstance(instance, PromptSource):
        raise ValueError(f"data.source of {path} must be a source of questions, got {source}")
    return instance
