"""What each scorer computes."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import pstdev
from typing import Any

import torch

from .common import Row, likelihood_gain, z_scores


@dataclass(frozen=True)
class NaiveScores:
    """Scores of one row by position; a position that is missing may not be branched at.

    Attributes:
        values: the scores.
        margins: above 0 for preferred positions, 0 where rounding decides; None if the scorer prefers none.
    """

    values: dict[int, float]
    margins: dict[int, float] | None = None


def branching_score(scorer: Any, rows: list[Row], generator: torch.Generator) -> list[NaiveScores]:
    """Entropy times likelihood gain, as z-scores of their row."""
    scores = []
    for row in rows:
        log_ratio = {t: row.old[t] - row.behavior[t] for t in row.sampled}
        gains = [likelihood_gain(log_ratio, t, scorer.discount, scorer.clip) for t in row.sampled]
        z_entropy, z_gain = z_scores([row.entropies[t] for t in row.sampled]), z_scores(gains)
        if scorer.entropy_fallback and pstdev(gains) <= scorer.min_spread:
            z_gain = [1.0] * len(gains)
        pairs = list(zip(row.sampled, z_entropy, z_gain, strict=True))
        scores.append(NaiveScores({t: h * g for t, h, g in pairs}, {t: min(h, g) for t, h, g in pairs}))
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
