"""Batches that hypothesis draws: trees of trajectories with tool output inside, and the rows of an optimizer step.

Small, in float64, and on a grid of decimals: equal values come up often, numbers that differ by rounding alone do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from appo.batch import NO_PARENT, TrainBatch, TrajectoryBatch

few = settings(max_examples=30, deadline=None, derandomize=True)
HIDDEN = (float("nan"), float("inf"), float("-inf"), 1e30)
"""What may stand where a mask says that nothing does."""


def decimals(lowest: float, highest: float) -> st.SearchStrategy[float]:
    """Multiples of 0.01."""
    return st.integers(round(100 * lowest), round(100 * highest)).map(lambda number: number / 100)


@dataclass(frozen=True, eq=False)
class Sequence:
    """One row in the making: token, whether it was sampled, its behavior and old log-prob and its entropy, by position.

    Attributes:
        tokens: of prompt and response.
        group: number of its prompt.
        parent: row of the parent; `NO_PARENT` for an initial trajectory.
        position: last position shared with the parent, likewise.
        score: of the branch point.
    """

    tokens: list[tuple[int, bool, float, float, float]]
    group: int
    parent: int = NO_PARENT
    position: int = NO_PARENT
    score: float = 0.0


@st.composite
def tokens(draw: st.DrawFn, min_size: int, max_size: int) -> list[tuple[int, bool, float, float, float]]:
    """A stretch of a response that begins with a sampled token, tool output anywhere behind."""
    behavior_scale = draw(st.sampled_from([0.0, 1.0, 1.0]))  # 0: the policy has not changed since it sampled
    stretch = []
    for number in range(draw(st.integers(min_size, max_size))):
        is_sampled = number == 0 or draw(st.booleans())
        behavior, log_ratio, entropy = draw(decimals(-3, 0)), draw(decimals(-0.3, 0.3)), draw(decimals(0, 2))
        old = min(0.0, behavior + behavior_scale * log_ratio)
        stretch.append((draw(st.integers(1, 9)), True, behavior, old, entropy) if is_sampled else (9, False, 0, 0, 0))
    return stretch


@st.composite
def forests(draw: st.DrawFn, with_branches: bool) -> list[Sequence]:
    """Initial trajectories of some prompts, prompt by prompt, then branches; positions of a prompt count as tokens."""
    initial: list[Sequence] = []
    branches: list[Sequence] = []
    for group in draw(st.lists(st.integers(-3, 9), min_size=1, max_size=3, unique=True)):
        prompt = [(number + 1, False, 0.0, 0.0, 0.0) for number in range(draw(st.integers(1, 2)))]
        for _ in range(draw(st.integers(1, 3))):
            whole = Sequence(prompt + draw(tokens(1, 6)), group)
            for _ in range(draw(st.integers(0, 2)) if with_branches else 0):
                position = draw(st.integers(len(prompt) - 1, len(whole.tokens) - 1))
                own = draw(tokens(1 if position < len(prompt) else 0, 3))
                score = draw(decimals(-1, 2))
                branches.append(Sequence(whole.tokens[: position + 1] + own, group, len(initial), position, score))
            initial.append(whole)
    return initial + branches


@st.composite
def trajectory_batches(draw: st.DrawFn, with_branches: bool = True) -> TrajectoryBatch:
    """Rewarded trajectories; groups of one and of equal rewards among them."""
    rows = draw(forests(with_branches))
    rewards = draw(st.one_of(decimals(-1, 1.1).map(lambda reward: [reward] * len(rows)), _one_a_row(rows)))
    width = max(len(row.tokens) for row in rows)
    padding = (0, False, 0.0, 0.0, 0.0)
    columns = list(
        zip(*(zip(*row.tokens + [padding] * (width - len(row.tokens)), strict=True) for row in rows), strict=True)
    )
    return TrajectoryBatch(
        token_ids=torch.tensor(columns[0]),
        lengths=torch.tensor([len(row.tokens) for row in rows]),
        response_mask=torch.tensor(columns[1]),
        behavior_log_probs=torch.tensor(columns[2], dtype=torch.float64),
        old_log_probs=torch.tensor(columns[3], dtype=torch.float64),
        entropies=torch.tensor(columns[4], dtype=torch.float64),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor([row.group for row in rows]),
        parent=torch.tensor([row.parent for row in rows]),
        branch_position=torch.tensor([row.position for row in rows]),
        branch_score=torch.tensor([row.score for row in rows], dtype=torch.float64),
    )


def _one_a_row(rows: list[Sequence]) -> st.SearchStrategy[list[float]]:
    return st.lists(decimals(-1, 1.1), min_size=len(rows), max_size=len(rows))


def measured_batches() -> st.SearchStrategy[TrajectoryBatch]:
    """What a scorer sees: initial trajectories that nobody has rewarded yet."""
    batches = trajectory_batches(with_branches=False)
    return batches.map(lambda batch: replace(batch, rewards=torch.full_like(batch.rewards, float("nan"))))


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss is called with."""

    log_probs: Tensor
    entropies: Tensor
    batch: TrainBatch

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies to be differentiated by."""
        return self.log_probs.clone().requires_grad_(), self.entropies.clone().requires_grad_()


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Rows of an optimizer step, with ratios on both sides of every clip; a row may have no trained token."""
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    lengths = [draw(st.integers(1, width)) for _ in range(num_rows)]
    mask = torch.tensor([[0 < t < length and draw(st.booleans()) for t in range(width)] for length in lengths])

    def column(lowest: float, highest: float) -> Tensor:
        values = [draw(decimals(lowest, highest)) for _ in range(int(mask.sum()))]
        return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(
            mask, torch.tensor(values, dtype=torch.float64)
        )

    old = column(-3, 0)
    totals = draw(st.sampled_from([(None, None), (40, 6)]))
    return Step(
        log_probs=old + column(-2, 2),
        entropies=column(0, 2),
        batch=TrainBatch(
            token_ids=torch.zeros(mask.shape, dtype=torch.int64),
            lengths=torch.tensor(lengths),
            response_mask=mask,
            behavior_log_probs=old + column(-1, 1),
            old_log_probs=old,
            advantages=column(-2, 2),
            ref_log_probs=old + column(-3, 3),
            num_tokens=totals[0],
            num_rows=totals[1],
        ),
    )


def orders(batch: TrajectoryBatch | TrainBatch) -> st.SearchStrategy[Tensor]:
    """Ways to put the rows of a batch."""
    return st.permutations(range(len(batch.token_ids))).map(torch.tensor)


def reordered(batch: TrajectoryBatch, order: Tensor) -> TrajectoryBatch:
    """The batch with row ``order[i]`` as row `i`; parents follow their rows."""
    new_row = order.argsort()
    moved = {f.name: getattr(batch, f.name)[order] for f in fields(batch)}
    moved["parent"] = torch.where(moved["parent"] == NO_PARENT, NO_PARENT, new_row[moved["parent"].clamp(min=0)])
    return replace(batch, **moved)


def hidden_variants(batch: TrajectoryBatch) -> Iterator[TrajectoryBatch]:
    """The batch with other values in every place that a mask hides: of tokens, of padding, of initial trajectories."""
    per_token = ("behavior_log_probs", "old_log_probs", "entropies")
    for value in HIDDEN:
        dirty = {name: getattr(batch, name).where(batch.response_mask, value) for name in per_token}
        yield replace(batch, **dirty, branch_score=batch.branch_score.where(batch.is_branch, value))
