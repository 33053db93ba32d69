"""A pilot study as a page for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from appo.commands.markdown import markdown_table
from appo.commands.pilot.figures import draw_depth, draw_scatter, draw_spearman
from appo.commands.pilot.measures import EVIDENT, LEVEL, Estimate, Measures, mean_over_questions
from appo.commands.pilot.options import StudyOptions
from appo.commands.pilot.positions import PARTS
from appo.commands.pilot.ranking import Criterion, controls, gains, rank_scorers, reliability
from appo.commands.pilot.records import Decision, StudyFolder
from appo.commands.pilot.table import write_positions

NOTHING = "—"
"""Stands where there is nothing to say."""

THIRDS = ("first third", "second third", "last third")
"""Of the sampled tokens of a trajectory."""

_NO_CHANGE = (
    "Scorers that compare the policy with the one that sampled find no difference where it is the same policy: the "
    "likelihood gain is 1 everywhere, `BranchingScore` ranks by entropy alone, and `LikelihoodGain` does not rank. "
    "`--later-policy` names what training has made of the policy, and has them rank with that, too."
)


class Place(NamedTuple):
    """Decisions of one kind, all questions together.

    Attributes:
        num: of them.
        influence: mean ``Var_a Q`` of those that have one.
        total: mean ``Var R``.
        share: of the influence of all decisions; NaN where the sum of that may be 0.
    """

    num: int
    influence: float
    total: float
    share: float


def write_study(folder: StudyFolder, options: StudyOptions, num_branches: int) -> Path:
    """Writes ``pilot.md``, ``positions.csv`` and the figures of what a folder has.

    Args:
        folder: with a question at least.
        options: of the study.
        num_branches: of a prompt, which says how many decisions a scorer would have to find.

    Returns:
        The path of the page.
    """
    measured = Measures.of(folder.read()[: options.questions])
    criteria, others = rank_scorers(measured, num_branches), controls(measured, num_branches)
    write_positions(folder.path / "positions.csv", measured)
    pictures = {name: [folder.path / f"{name}.{kind}" for kind in ("png", "svg")] for name in _FIGURES}
    draw_spearman(criteria, pictures["spearman"])
    draw_scatter(measured, criteria, pictures["scores"])
    draw_depth(measured, pictures["depth"])
    lines = [
        *_summary(measured, folder, options, num_branches),
        *_scorer_table(criteria, others, num_branches),
        *_gain_table(measured, options),
        *_places(measured),
        *_skipped(measured),
        *_costs(measured),
    ]
    path = folder.path / "pilot.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


_LEAST_AGREEMENT = 0.3
"""Of two measurements, below which the page warns."""

_FIGURES = ("spearman", "scores", "depth")


def _summary(measured: Sequence[Measures], folder: StudyFolder, options: StudyOptions, num_branches: int) -> list[str]:
    draws = [len(decision.tokens) for each in measured for decision in each.question.decisions]
    num_open = sum(each.is_open for each in measured)
    influence = mean_over_questions([float(each.whole.influence.nanmean()) for each in measured])
    total = mean_over_questions([float(each.whole.total.mean()) for each in measured])
    rewards = mean_over_questions(
        [sum(each.question.root_rewards) / len(each.question.root_rewards) for each in measured]
    )
    agreement = reliability(measured)
    num_unknown = sum(int(each.whole.influence.isnan().sum()) for each in measured)
    lines = [
        "# Pilot study",
        "",
        f"Policy `{folder.specification['model.policy']}`: {len(measured)} questions of the {options.split} split, "
        f"{options.roots} roots each, {len(draws):,} of their sampled tokens (*decisions*), drawn anew with all that "
        f"follows: {options.continuations} continuations of each in the mean, more where the policy was not sure, draw "
        f"all decisions that they come upon, {fmean(draws):.0f} draws a decision. Intervals are {LEVEL:.0%} bootstrap "
        "intervals over questions.",
        "",
        "| | mean over questions |",
        "|---|---:|",
        f"| reward of a root | {_with_interval(rewards)} |",
        f"| `Var R`, variance of the reward behind a position | {_with_interval(total, 4)} |",
        f"| `Var_a Q`, the part of it that the next token decides | {_with_interval(influence, 4)} |",
        f"| agreement of `Var_a Q` with a second measurement | {_with_interval(agreement)} |",
        "",
        f"In {num_open} of {len(measured)} questions the influence differs evidently between decisions; the others say "
        "nothing about scorers.",
    ]
    if not agreement.low > _LEAST_AGREEMENT:
        lines.append(
            "The estimates hardly agree with a second measurement, and ranks of noise mislead. Go by `Var_a Q` of the "
            f"top {num_branches}, which has no bias, or measure with more continuations."
        )
    if num_unknown:
        lines.append(
            f"Of {num_unknown} decisions all tokens drawn differ, which leaves their influence unknown: they are left "
            "out where it is asked for."
        )
    return [*lines, ""]


def _scorer_table(criteria: Sequence[Criterion], others: Sequence[Criterion], num_branches: int) -> list[str]:
    ks = list(others[0].passes)
    columns = [
        "",
        "Spearman `Var_a Q`",
        "Spearman `Var R`",
        "pooled",
        f"top {num_branches}",
        f"`Var_a Q` of top {num_branches}",
        *(f"pass@{k}" for k in ks),
    ]
    rows = [
        [
            f"`{each.name}`" if each in criteria else each.name,
            _with_interval(each.influence),
            _with_interval(each.total),
            _number(each.pooled),
            _with_interval(each.precision),
            _with_interval(each.reached, 4),
            *(_number(each.passes[k].mean) if k in each.passes else NOTHING for k in ks),
        ]
        for each in (*criteria, *others)
    ]
    text = [
        "## Which scorer finds them",
        "",
        *markdown_table(columns, rows),
        "",
        "- *Spearman*: rank correlation of the score with the influence of the decision, and with the variance of the "
        "reward behind it, among the decisions of a question, averaged over questions. *pooled*: `Var_a Q` among all "
        f"decisions. Ranks go by the influence that a permutation test tells from 0 (p up to {EVIDENT}); other "
        "decisions count as 0.",
        f"- *top {num_branches}*: share of the {num_branches} best-scored decisions of a question, as many as a prompt "
        "has branches, that are among those of the largest `Var_a Q`; ties are broken by chance. *`Var_a Q` of top "
        f"{num_branches}*: its mean over them, evident or not.",
    ]
    if ks:
        text.append(
            "- *pass@k*: probability that one of k continuations from the best-scored decision of a question is right."
        )
    text.append("- The oracles choose by one half of the continuations and are judged by the other.")
    return [*text, "", _NO_CHANGE, "", "![spearman](spearman.png)", "", "![scores](scores.png)", ""]


def _gain_table(measured: Sequence[Measures], options: StudyOptions) -> list[str]:
    found = gains(measured)
    if not found:
        return []
    rows = [[f"`{each.name}`", *map(_with_interval, (each.before, each.later, each.difference))] for each in found]
    columns = ["Spearman `Var_a Q`", "policy that sampled", "later policy", "difference"]
    note = (
        f"Scored with `{options.later_policy}`, which the policy has become since; what is found is the influence of "
        "decisions on the policy that sampled. `Entropy` is the control: it has no likelihood gain."
    )
    return ["## What a change of the policy adds", "", *markdown_table(columns, rows), "", note, ""]


def _places(measured: Sequence[Measures]) -> list[str]:
    lines = ["## Where influence lies", ""]
    for title, names, of in (
        ("part of the response", PARTS, lambda decision: decision.part),
        ("depth", THIRDS, lambda decision: THIRDS[third(decision.depth)]),
    ):
        places = places_of(measured, of)
        rows = [
            [name, f"{place.num:,}", _number(place.influence, 4), _number(place.total, 4), _percent(place.share)]
            for name in names
            if (place := places.get(name)) is not None
        ]
        columns = [title, "decisions", "mean `Var_a Q`", "mean `Var R`", "share of the influence"]
        lines += [*markdown_table(columns, rows), ""]
    return [*lines, "![depth](depth.png)", ""]


def places_of(measured: Sequence[Measures], kind: Callable[[Decision], str]) -> dict[str, Place]:
    """Decisions by their kind.

    Args:
        measured: a question each.
        kind: of a decision.
    """
    kinds = [kind(decision) for each in measured for decision in each.question.decisions]
    influence, total = (torch.cat([values(each) for each in measured]) for values in (_influence, _total))
    has_influence = mean_over_questions([float(each.whole.influence.nanmean()) for each in measured]).low > 0.0
    found = {}
    for name in {*kinds}:
        is_one = torch.tensor([each == name for each in kinds])
        share = float(influence[is_one].nansum() / influence.nansum()) if has_influence else float("nan")
        found[name] = Place(int(is_one.sum()), float(influence[is_one].nanmean()), float(total[is_one].mean()), share)
    return found


def third(depth: float) -> int:
    """Number of the third that a depth lies in."""
    return min(2, int(3 * depth))


def _influence(measures: Measures) -> torch.Tensor:
    return measures.whole.influence


def _total(measures: Measures) -> torch.Tensor:
    return measures.whole.total


def _skipped(measured: Sequence[Measures]) -> list[str]:
    reasons = sorted({item for each in measured for item in each.question.skipped.items()})
    if not reasons:
        return []
    lines = []
    for name, group in groupby(reasons, key=lambda item: item[0]):
        first = next(iter(group))[1]
        num = sum(name in each.question.skipped for each in measured)
        lines.append(f"- `{name}`" + (f" ({num} questions)" if num < len(measured) else "") + f": {first}")
    return ["## Without a score", "", *lines, ""]


def _costs(measured: Sequence[Measures]) -> list[str]:
    questions = [each.question for each in measured]
    names = list(dict.fromkeys(name for question in questions for name in question.seconds))
    seconds = {name: sum(question.seconds.get(name, 0.0) for question in questions) for name in names}
    rows = [
        ["continuations", f"{sum(question.num_continuations for question in questions):,}"],
        ["sampled tokens", f"{sum(question.num_tokens for question in questions):,.0f}"],
        *([f"seconds: {name}", f"{value:,.1f}"] for name, value in seconds.items()),
        ["seconds", f"{sum(seconds.values()):,.1f}"],
    ]
    return ["## Cost", "", *markdown_table(["", "all questions"], rows), ""]


def _number(value: float, digits: int = 3) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{share:.0%}"


def _with_interval(estimate: Estimate, digits: int = 3) -> str:
    if not estimate.num:
        return NOTHING
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
