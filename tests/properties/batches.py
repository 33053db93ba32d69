"""Batches that hypothesis draws: trees of trajectories with tool output inside, and the rows of an optimizer step.

Small, in float64, and on a grid of decimals: equal values come up often, numbers that differ by rounding alone do not.
Hypothesis draws a seed alone: left to draw every number, it makes most batches of one token, or nearly alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from random import Random

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.core.trajectory import NOT_SAMPLED

few = settings(max_examples=50, deadline=None, derandomize=True)
HIDDEN = (float("nan"), float("inf"), float("-inf"), 1e30)
"""What may stand where a mask says that nothing does."""
SEEDS = st.integers(0, 2**32 - 1)
Token = tuple[int, bool, float, float, float]
"""Its id, whether it was sampled, its behavior log-prob, its old one, and the entropy."""
PADDING: Token = (0, False, 0.0, 0.0, 0.0)


def decimal(random: Random, lowest: float, highest: float) -> float:
    """A multiple of 0.01."""
    return random.randint(round(100 * lowest), round(100 * highest)) / 100


@dataclass(frozen=True, eq=False)
class Sequence:
    """One row in the making.

    Attributes:
        tokens: of prompt and response.
        group: number of its prompt.
        parent: row of the parent; `NO_PARENT` for an initial trajectory.
        position: last position shared with the parent, likewise.
        score: of the branch point.
    """

    tokens: list[Token]
    group: int
    parent: int = NO_PARENT
    position: int = NO_PARENT
    score: float = 0.0


def stretch(random: Random, length: int) -> list[Token]:
    """Part of a response that begins with a sampled token, tool output anywhere behind."""
    is_unchanged = random.random() < 0.2  # the policy is still the one that sampled
    tokens: list[Token] = []
    for number in range(length):
        if number > 0 and random.random() < 0.3:
            tokens.append((9, False, 0.0, 0.0, 0.0))
            continue
        behavior = decimal(random, -3, 0)
        old = behavior if is_unchanged else min(0.0, behavior + decimal(random, -0.3, 0.3))
        tokens.append((random.randint(1, 8), True, behavior, old, decimal(random, 0, 2)))
    return tokens


def forest(random: Random, with_branches: bool) -> list[Sequence]:
    """Roots, prompt by prompt, then branches, up to three generations; numbers of prompts have gaps and no order."""
    roots: list[Sequence] = []
    for group in random.sample(range(-3, 9), random.randint(1, 3)):
        prompt = [PADDING] * random.randint(1, 2)
        for _ in range(random.randint(1, 3)):
            roots.append(Sequence(prompt + stretch(random, random.randint(1, 7)), group))
    rows, parents = [*roots], range(len(roots))
    for _ in range(random.randint(1, 3) if with_branches else 0):
        first_of_generation = len(rows)
        for parent in parents:
            for _ in range(random.randint(0, 2)):
                rows += one_branch(random, rows, parent)
        parents = range(first_of_generation, len(rows))
    return rows


def one_branch(random: Random, rows: list[Sequence], parent: int) -> list[Sequence]:
    """A branch of a row, often from where another has left it; none if the row has no token of its own."""
    whole = rows[parent]
    prompt_length = whole.tokens.count(PADDING)
    own = range(max(whole.position + 1, prompt_length - 1), len(whole.tokens))
    if not own:
        return []
    others = [row.position for row in rows if row.parent == parent]
    position = random.choice(others) if others and random.random() < 0.4 else random.choice(own)
    tokens = whole.tokens[: position + 1] + stretch(random, random.randint(position < prompt_length, 3))
    return [Sequence(tokens, whole.group, parent, position, decimal(random, -1, 2))]


@st.composite
def trajectory_batches(draw: st.DrawFn, with_branches: bool = True) -> TrajectoryBatch:
    """Rewarded trajectories; groups of one and of equal rewards among them."""
    random = Random(draw(SEEDS))
    rows = forest(random, with_branches)
    levels = random.choice([[0.1], [0.0, 1.0], [number / 100 for number in range(-100, 111)]])
    width = max(len(row.tokens) for row in rows)
    padded = [row.tokens + [PADDING] * (width - len(row.tokens)) for row in rows]
    token_ids, mask, behavior, old, entropies = (
        torch.tensor([[token[i] for token in row] for row in padded], dtype=dtype)
        for i, dtype in enumerate([torch.int64, torch.bool, *[torch.float64] * 3])
    )
    return make_batch(
        token_ids=token_ids,
        lengths=torch.tensor([len(row.tokens) for row in rows]),
        response_mask=mask,
        behavior_log_probs=behavior,
        old_log_probs=old,
        entropies=entropies,
        rewards=torch.tensor([random.choice(levels) for _ in rows], dtype=torch.float64),
        group=torch.tensor([row.group for row in rows]),
        parent=torch.tensor([row.parent for row in rows]),
        branch_position=torch.tensor([row.position for row in rows]),
        branch_score=torch.tensor([row.score for row in rows], dtype=torch.float64),
    )


@st.composite
def measured_batches(draw: st.DrawFn) -> TrajectoryBatch:
    """What a scorer sees: initial trajectories, rewarded or not, evaluated by a version of the policy.

    Of the rows, some were sampled by that version, some by an earlier one, and some by both.
    """
    batch, random = draw(trajectory_batches(with_branches=False)), Random(draw(SEEDS))
    mask = batch.response_mask
    earliest = [random.choice([0, 0, 1]) for _ in mask]
    versions = [
        [random.choice([lowest, 1]) if random.random() < 0.3 else lowest for _ in row]
        for lowest, row in zip(earliest, mask.tolist(), strict=True)
    ]
    noise = [[decimal(random, -0.02, 0.0) for _ in row] for row in mask.tolist()]
    sampling = (batch.behavior_log_probs + torch.tensor(noise, dtype=torch.float64)).where(mask, 0.0)
    return replace(
        batch,
        rewards=torch.full_like(batch.rewards, float("nan")) if random.random() < 0.3 else batch.rewards,
        policy_versions=torch.tensor(versions).where(mask, NOT_SAMPLED),
        evaluated_by=torch.ones(len(batch), dtype=torch.int64),
        sampling_log_probs=random.choice([None, sampling]),
    )


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss is called with."""

    log_probs: Tensor
    entropies: Tensor
    batch: TrajectoryBatch

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies to be differentiated by."""
        return self.log_probs.clone().requires_grad_(), self.entropies.clone().requires_grad_()


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Rows of an optimizer step, with ratios on both sides of every clip; a row may have no trained token."""
    random = Random(draw(SEEDS))
    num_rows, width = random.randint(1, 4), random.randint(2, 9)
    lengths = [random.randint(1, width) for _ in range(num_rows)]
    mask = torch.tensor([[0 < t < length and random.random() < 0.8 for t in range(width)] for length in lengths])

    def column(lowest: float, highest: float) -> Tensor:
        values = [[decimal(random, lowest, highest) for _ in range(width)] for _ in range(num_rows)]
        return torch.tensor(values, dtype=torch.float64).where(mask, 0.0)

    old = column(-3, 0)
    totals = random.choice([(None, None, None), (40, 6, 11)])
    is_trained = torch.tensor([[random.random() < 0.7 for _ in range(width)] for _ in range(num_rows)])
    return Step(
        log_probs=old + column(-2, 2),
        entropies=column(0, 2),
        batch=make_batch(
            token_ids=torch.zeros(mask.shape, dtype=torch.int64),
            lengths=torch.tensor(lengths),
            response_mask=mask,
            behavior_log_probs=old + column(-1, 1),
            old_log_probs=old,
            advantages=column(-2, 2),
            ref_log_probs=old + column(-3, 3),
            num_tokens=totals[0],
            num_rows=totals[1],
            num_trajectories=totals[2],
            train_mask=random.choice([None, mask & is_trained]),
        ),
    )


def orders(batch: TrajectoryBatch) -> st.SearchStrategy[Tensor]:
    """Ways to put the rows of a batch."""
    return st.permutations(range(len(batch.token_ids))).map(torch.tensor)


def reordered(batch: TrajectoryBatch, order: Tensor) -> TrajectoryBatch:
    """The batch with row ``order[i]`` as row `i`; parents follow their rows."""
    new_row = order.argsort()
    moved = {f.name: getattr(batch, f.name)[order] for f in fields(batch) if getattr(batch, f.name) is not None}
    moved["parent"] = torch.where(moved["parent"] == NO_PARENT, NO_PARENT, new_row[moved["parent"].clamp(min=0)])
    return replace(batch, **moved)


def hidden_variants(batch: TrajectoryBatch) -> Iterator[TrajectoryBatch]:
    """The batch with other values in every place that a mask hides: of tokens, of padding, of initial trajectories."""
    per_token = ["behavior_log_probs", "old_log_probs", "entropies"]
    per_token += [] if batch.sampling_log_probs is None else ["sampling_log_probs"]
    for value in HIDDEN:
        dirty = {name: getattr(batch, name).where(batch.response_mask, value) for name in per_token}
        yield replace(batch, **dirty, branch_score=batch.branch_score.where(batch.is_branch, value))
