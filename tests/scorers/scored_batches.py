"""Scorers, trajectories to score, and the context of scorers that need no policy."""

import torch

from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.scorers import SCORERS, BatchContext, Scorer

INF = float("inf")


def context(seed: int = 0) -> BatchContext:
    return BatchContext(torch.Generator().manual_seed(seed))


def built(name: str) -> Scorer:
    """A scorer with its defaults, or what it has none for."""
    options = {
        "FunctionScorer": {"function": "tests.scorers.functions:surprise"},
        "Oracle": {"influence": "tests.scorers.functions:influence"},
    }
    return SCORERS[name](**options.get(name, {}))


def one_row(log_ratio: list[float], entropies: list[float]) -> TrajectoryBatch:
    """A single trajectory behind a prompt of one token, sampled by version 0 and evaluated by version 1."""
    ratios, length = torch.tensor([[0.0, *log_ratio]]), len(log_ratio) + 1
    return make_batch(
        token_ids=torch.arange(length).unsqueeze(0),
        lengths=torch.tensor([length]),
        response_mask=torch.tensor([[False] + [True] * (length - 1)]),
        behavior_log_probs=torch.full((1, length), -1.0),
        old_log_probs=ratios - 1.0,
        entropies=torch.tensor([[0.0, *entropies]]),
        evaluated_by=torch.tensor([1]),
        rewards=torch.tensor([float("nan")]),
        group=torch.tensor([0]),
        parent=torch.tensor([NO_PARENT]),
        branch_position=torch.tensor([NO_PARENT]),
        branch_score=torch.zeros(1),
    )


def two_results(entropies: list[float], rows: int = 1) -> TrajectoryBatch:
    """Trajectories of three turns of two tokens each, one token of prompt and of every tool result between them."""
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1, 1]], dtype=torch.bool).expand(rows, -1)
    values = torch.zeros(rows, 9)
    values[mask] = torch.tensor(entropies * rows)
    return make_batch(
        token_ids=torch.arange(9).expand(rows, -1),
        lengths=torch.full((rows,), 9),
        response_mask=mask,
        behavior_log_probs=-1.0 * mask,
        old_log_probs=-1.0 * mask,
        entropies=values,
        rewards=torch.full((rows,), float("nan")),
        group=torch.zeros(rows, dtype=torch.int64),
        parent=torch.full((rows,), NO_PARENT),
        branch_position=torch.full((rows,), NO_PARENT),
        branch_score=torch.zeros(rows),
    )
