"""What each scorer computes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import torch

from tests.properties.naive.common import Row, bounded, likelihood_gain, z_scores
from tests.scorers.contexts import ANSWERS, log_prob


@dataclass(frozen=True)
class NaiveScores:
    """Scores of one row by position; a position that is missing may not be branched at.

    Attributes:
        values: the scores.
        margins: above 0 for preferred positions, 0 where rounding decides; None if the scorer prefers none.
    """

    values: dict[int, float]
    margins: dict[int, float] | None = None


def gains(scorer: Any, row: Row) -> list[float]:
    """The likelihood gain of every sampled token."""
    log_ratio = {t: row.old[t] - row.sampling[t] for t in row.sampled if row.versions[t] != row.evaluated_by}
    discount = 1.0 if scorer.half_life is None else 0.5 ** (1 / scorer.half_life)
    lowest = 1.0 if scorer.high_only else None
    return [likelihood_gain(log_ratio, t, discount, scorer.clip, lowest) for t in row.sampled]


def is_changed(row: Row) -> bool:
    """Whether another version sampled any token than has evaluated them."""
    return any(row.versions[t] != row.evaluated_by for t in row.sampled)


def pools(scorer: Any, rows: list[Row]) -> list[list[int]]:
    """The rows whose tokens share one mean and one standard deviation."""
    if scorer.scope == "trajectory":
        return [[i] for i in range(len(rows))]
    keys = [row.group if scorer.scope == "prompt" else 0 for row in rows]
    return [[i for i, other in enumerate(keys) if other == key] for key in set(keys)]


def branching_score(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """Entropy times likelihood gain, as z-scores."""
    scores = [NaiveScores({}, {} if scorer.strict else None) for _ in rows]
    for pool in pools(scorer, rows):
        places = [(i, t) for i in pool for t in rows[i].sampled]
        pooled = [gain for i in pool for gain in gains(scorer, rows[i])]
        z_entropy, z_gain = z_scores([rows[i].entropies[t] for i, t in places]), z_scores(pooled)
        for (i, t), h, g in zip(places, z_entropy, z_gain, strict=True):
            factor = g if is_changed(rows[i]) else 1.0
            scores[i].values[t] = h * factor
            if scorer.strict:
                scores[i].margins[t] = min(h, factor)
    return scores


def surprise(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """What a user's function says, of sampled tokens."""
    scale = scorer.options.get("scale", 1.0)
    return [NaiveScores({t: -scale * row.old[t] for t in row.sampled}) for row in rows]


def likelihood_gain_alone(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """The likelihood gain as a z-score."""
    scores = [NaiveScores({}) for _ in rows]
    for pool in pools(scorer, rows):
        places = [(i, t) for i in pool for t in rows[i].sampled]
        z_gain = z_scores([gain for i in pool for gain in gains(scorer, rows[i])])
        for (i, t), g in zip(places, z_gain, strict=True):
            scores[i].values[t] = g if is_changed(rows[i]) else 0.0
    return scores


def entropy(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """The entropy itself."""
    return [NaiveScores({t: row.entropies[t] for t in row.sampled}) for row in rows]


def random_position(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """One uniform number for every position, row by row."""
    uniform = torch.rand(len(rows), rows[0].width, generator=generator).tolist()
    return [NaiveScores({t: uniform[i][t] for t in row.sampled}) for i, row in enumerate(rows)]


def no_branching(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """No position at all."""
    return [NaiveScores({}) for _ in rows]


def turns_of(row: Row) -> list[list[int]]:
    """The runs of sampled tokens."""
    turns: list[list[int]] = []
    for t in row.sampled:
        if turns and turns[-1][-1] == t - 1:
            turns[-1].append(t)
        else:
            turns.append([t])
    return turns


def entropy_changes(scorer: Any, row: Row) -> list[float]:
    """The entropy at the beginning of every turn, minus that of the first."""
    openings = [sum(row.entropies[t] for t in turn[: scorer.window]) / scorer.entropy_scale for turn in turns_of(row)]
    return [opening - openings[0] for opening in openings]


def behind_results(rows: list[Row], drawn: Collection[tuple[int, int]]) -> list[NaiveScores]:
    """Scores of the drawn turns, by row and number: the sooner, the better, and the prompt last."""
    scores = []
    for i, row in enumerate(rows):
        first, *later = (turn[0] for turn in turns_of(row))
        hits = {t: 1 / number for number, t in enumerate(later, start=1) if (i, number) in drawn}
        scores.append(NaiveScores({first: 0.0, **hits}, {first: -1.0, **dict.fromkeys(hits, 1.0)}))
    return scores


def tool_boundary(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """ARPO: the probability of a branch behind a tool result rises with the entropy."""
    uniform = torch.rand(len(rows), rows[0].width, generator=generator).tolist()
    drawn = {
        (i, number)
        for i, row in enumerate(rows)
        for number, (turn, change) in enumerate(zip(turns_of(row), entropy_changes(scorer, row), strict=True))
        if number > 0 and uniform[i][turn[0]] < bounded(scorer.probability + scorer.entropy_weight * change, 0, 1)
    }
    return behind_results(rows, drawn)


def balanced_entropy(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """AEPO: the same, and harder after every branch in a row; all trajectories of a prompt advance turn by turn."""
    uniform = torch.rand(len(rows), rows[0].width, generator=generator).tolist()
    drawn = set()
    for group in {row.group for row in rows}:
        members = [(i, row) for i, row in enumerate(rows) if row.group == group]
        in_a_row = 0
        for number in range(1, rows[0].width):
            for i, row in members:
                if number < len(turns_of(row)):
                    start, change = turns_of(row)[number][0], entropy_changes(scorer, row)[number]
                    odds = (uniform[i][start] + scorer.entropy_weight * change) * max(0, 1 - scorer.penalty * in_a_row)
                    is_hit = bounded(odds, 0, 1) >= scorer.threshold
                    in_a_row = in_a_row + 1 if is_hit else 0
                    drawn |= {(i, number)} if is_hit else set()
    return behind_results(rows, drawn)


def tree_uniform(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """Tree-GRPO: every node that has a successor is as likely as any other."""
    uniform = torch.rand(len(rows), rows[0].width, generator=generator).tolist()
    return [NaiveScores({turn[0]: uniform[i][turn[0]] for turn in turns_of(row)}) for i, row in enumerate(rows)]


def surprisal(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """How unlikely the sampled token was."""
    return [NaiveScores({t: -row.old[t] for t in row.sampled}) for row in rows]


def position(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """Where a token stands among the sampled ones."""
    scores = []
    for row in rows:
        last = max(1, len(row.sampled) - 1)
        of = {
            "early": lambda number, last=last: (last - number) / last,
            "late": lambda number, last=last: number / last,
            "middle": lambda number, last=last: 2 * min(number, last - number) / last,
        }[scorer.prefer]
        scores.append(NaiveScores({t: of(number) for number, t in enumerate(row.sampled)}))
    return scores


def segment_cut(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """Every few uncertain tokens a cut, the first cut first."""
    scores = []
    for row in rows:
        uncertain = [t for t in row.sampled if math.exp(row.behavior[t]) < scorer.probability]
        cuts = {t: 1 / number for number, t in enumerate(uncertain[scorer.interval - 1 :: scorer.interval], start=1)}
        scores.append(
            NaiveScores({t: cuts.get(t, 0.0) for t in uncertain}, {t: 1.0 if t in cuts else -1.0 for t in uncertain})
        )
    return scores


def hindsight_divergence(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """What a text between prompt and response changes."""
    scores = []
    for row in rows:
        text = scorer.answer.replace("{answer}", " or ".join(ANSWERS))
        if not math.isnan(row.reward):
            text += scorer.verdict.replace("{reward}", f"{row.reward:g}")
        told = row.token_ids[: row.prompt_length] + [ord(letter) for letter in text]
        sequence = told + row.token_ids[row.prompt_length : row.length]
        scores.append(NaiveScores({t: abs(log_prob(sequence, t + len(text)) - row.old[t]) for t in row.sampled}))
    return scores


def turn_gains(opening: str, row: Row) -> list[float]:
    """What each turn but the last changes in the probability of the answer, and 0 for the last one."""
    probabilities = []
    for turn in turns_of(row):
        opened = row.token_ids[: turn[0]] + [ord(letter) for letter in opening]
        sequence = opened + [ord(letter) for letter in ANSWERS[0]]
        probabilities.append(math.exp(mean(log_prob(sequence, t) for t in range(len(opened), len(sequence)))))
    return [*(after - before for before, after in pairwise(probabilities)), 0.0]


def information_gain(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """How far each turn changes the probability of the answer."""
    return [
        NaiveScores(
            {turn[0]: abs(gain) for turn, gain in zip(turns_of(row), turn_gains(scorer.opening, row), strict=True)}
        )
        for row in rows
    ]


def oracle(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """What the function says."""
    scale = scorer.options.get("scale", 1.0)
    return [NaiveScores({t: scale * (row.token_ids[t] % 7) for t in row.sampled}) for row in rows]
