"""The expectation of gradients from trees: over all outcomes of small trees, each weighted by its probability."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from appo.advantages import GroupAdvantage, LeaveOneOut, ProceduralAdvantage, SegmentAdvantage, SiblingAdvantage
from appo.core.batch import NO_PARENT, TrajectoryBatch
from benchmarks.tabular_policy import TabularPolicy, draw_roots, make_rows
from benchmarks.tree_signal import Design, draw_policy, gradients, signal_of, with_branches

LENGTH, FORK = 3, 2
ROOTS, TREES = (0, 0), (0, 0, FORK, FORK)
"""First position that each row of a prompt samples: two roots, and a branch of each that draws the last token anew."""


@pytest.fixture
def policy() -> TabularPolicy:
    """Noise, then two decisions of which the second depends on the first; every combination has a reward of its own."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    return TabularPolicy(logits, LENGTH, (1, 2), torch.tensor([1.0, 0.0, 0.25, 0.5], dtype=torch.float64))


def all_outcomes(policy: TabularPolicy, starts: tuple[int, ...]) -> tuple[TrajectoryBatch, Tensor]:
    """A prompt for each outcome of a tree, and the ``[P]`` probabilities of the outcomes."""
    sampled = [(row, t) for row, start in enumerate(starts) for t in range(start, LENGTH)]
    rows, weights = [], []
    for outcome in product(range(2), repeat=len(sampled)):
        tokens = torch.zeros(len(starts), LENGTH, dtype=torch.int64)
        for (row, t), token in zip(sampled, outcome, strict=True):
            tokens[row, t] = token
        for row, start in enumerate(starts):
            tokens[row, :start] = tokens[row % 2, :start]
        states = policy.all_states(tokens)
        weights.append(torch.stack([policy.probs[states[row, t], tokens[row, t]] for row, t in sampled]).prod())
        rows.append(tokens)
    number, size = len(rows), len(starts)
    first_rows = torch.arange(number).unsqueeze(-1) * size
    parent = torch.tensor([NO_PARENT, NO_PARENT, 0, 1][:size])
    branch_position = torch.tensor(
        [NO_PARENT, NO_PARENT, FORK, FORK][:size]
    )  # a prompt token stands before the response
    batch = make_rows(
        policy,
        torch.cat(rows),
        torch.arange(number).repeat_interleave(size),
        parent=torch.where(parent < 0, parent, parent + first_rows).flatten(),
        branch_position=branch_position.repeat(number),
    )
    return batch, torch.stack(weights)


def expected_reward(policy: TabularPolicy, logits: Tensor) -> Tensor:
    """Over all responses, token by token."""
    total = logits.new_zeros(())
    for response in product(range(2), repeat=LENGTH):
        tokens = torch.tensor([response])
        log_prob = logits.log_softmax(-1)[policy.all_states(tokens)[0], tokens[0]].sum()
        total = total + log_prob.exp() * policy.reward(tokens)[0]
    return total


def test_the_true_gradient_is_that_of_the_expected_reward(policy):
    logits = policy.logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(expected_reward(policy, logits), logits)
    torch.testing.assert_close(policy.true_gradient(), expected)


def test_the_influence_of_a_choice_is_the_variance_of_its_expected_reward(policy):
    probs, rewards = policy.probs, policy.rewards.view(2, 2)
    # States 0: noise; 1: first decision; 2 and 3: second one, behind either choice.
    q_first = torch.stack([probs[2] @ rewards[0], probs[3] @ rewards[1]])
    choices = ((probs[1], q_first), (probs[2], rewards[0]), (probs[3], rewards[1]))
    expected = [p @ (q - p @ q).square() for p, q in choices]
    torch.testing.assert_close(policy.influence(), torch.stack([torch.zeros_like(expected[0]), *expected]))


def test_branches_leave_before_the_most_influential_choices():
    generator = torch.Generator().manual_seed(0)
    policy = draw_policy((16, 19, 22), 2, generator)
    roots = draw_roots(policy, torch.tensor([2, 2]), generator)
    trees = with_branches(policy, roots, Design(2, 3, "per_prompt"), "oracle", generator)
    influence = policy.influence()[policy.all_states(roots.token_ids[:, 1:])]
    for prompt in (0, 1):
        branches = ((trees.group == prompt) & trees.is_branch).nonzero()[:, 0]
        # The chosen token, the first that the branch has drawn, is at position `branch_position` of the response.
        chosen = influence[trees.parent[branches], trees.branch_position[branches]]
        torch.testing.assert_close(chosen, influence[roots.group == prompt].flatten().sort(descending=True).values[:3])
        for branch in branches.tolist():
            end = int(trees.branch_position[branch]) + 1
            assert torch.equal(trees.token_ids[branch, :end], trees.token_ids[trees.parent[branch], :end])


@pytest.mark.parametrize(
    ("starts", "estimate", "train_on", "shared", "behind"),
    [
        # Of n roots GRPO's baseline leaves (n - 1) / n of each.
        (ROOTS, GroupAdvantage(std="none"), "roots", 1.0, 1.0),
        (ROOTS, LeaveOneOut(), "roots", 2.0, 2.0),
        # Branches are a second group, which tells of the shared tokens as much again; behind the fork only those that
        # are trained count.
        (TREES, ProceduralAdvantage(std="none"), "roots", 2.0, 1.0),
        (TREES, ProceduralAdvantage(std="none"), "both", 2.0, 2.0),
        # The baseline holds a quarter of the own reward, and before the fork another of the other ending's, too.
        (TREES, GroupAdvantage(std="none"), "both", 1.0, 3.0),
        # Two roots before the fork, four endings behind it.
        (TREES, SiblingAdvantage(), "both", 2.0, 4.0),
        # The baselines count the own ending: (n - 1) / n of two roots, and of two endings at each of two points.
        (TREES, SegmentAdvantage(), "both", 1.0, 2.0),
    ],
)
def test_the_expected_gradient_is_a_multiple_of_the_true_one(policy, starts, estimate, train_on, shared, behind):
    batch, weights = all_outcomes(policy, starts)
    torch.testing.assert_close(float(weights.sum()), 1.0)
    mean = torch.einsum("p,psv->sv", weights, gradients(policy, batch, estimate, train_on))
    # States of the tokens before the fork, and of those behind it.
    factors = torch.tensor([shared, shared, behind, behind], dtype=torch.float64)
    torch.testing.assert_close(mean, factors.unsqueeze(-1) * policy.true_gradient())


def test_signal_and_direction_by_hand():
    # Along the truth 3 and 1, across it 2 and 4: mean (2, 3), variances 2 and 2, length**2 = 13 - 4 / 2 = 11.
    signal = signal_of(torch.tensor([[[3.0, 2.0]], [[1.0, 4.0]]]), torch.tensor([[5.0, 0.0]]))
    assert signal.snr == pytest.approx(4 / 4)
    assert signal.cosine == pytest.approx(2 / 11**0.5)
