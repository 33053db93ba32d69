"""A policy that is a table, whose gradient can be enumerated, and the batches that it samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.collate import make_batch


@dataclass(frozen=True, eq=False)
class TabularPolicy:
    """A policy that is a table, with a reward of its decisions.

    A state is what the logits of a token depend on: its position and, at a decision, the decisions before it.

    Attributes:
        logits: ``[S, V]`` float64 of `S` states, position by position.
        length: tokens of a response.
        decisions: their positions in the response, in order.
        rewards: ``[V ** K]`` float64 of all `K` decisions, the last one running fastest.
    """

    logits: Tensor
    length: int
    decisions: tuple[int, ...]
    rewards: Tensor

    @cached_property
    def probs(self) -> Tensor:
        """``[S, V]``."""
        return self.logits.softmax(-1)

    @cached_property
    def first_states(self) -> list[int]:
        """Of each position the number of its first state, and behind them the number of states."""
        firsts = [0]
        for t in range(self.length):
            before = self.decisions.index(t) if t in self.decisions else 0
            firsts.append(firsts[-1] + self.logits.shape[1] ** before)
        return firsts

    def states(self, tokens: Tensor, t: int) -> Tensor:
        """``[B]`` int64, state of each row at a position of ``[B, T]`` responses."""
        number = torch.zeros_like(tokens[:, 0])
        for decision in self.decisions if t in self.decisions else ():
            if decision < t:
                number = number * self.logits.shape[1] + tokens[:, decision]
        return self.first_states[t] + number

    def all_states(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` int64, of all tokens."""
        return torch.stack([self.states(tokens, t) for t in range(self.length)], dim=-1)

    def sample(self, tokens: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
        """``[B, T]`` responses, of which the tokens from ``[B]`` `start` on are drawn anew."""
        tokens = tokens.clone()
        for t in range(self.length):
            drawn = torch.multinomial(self.probs[self.states(tokens, t)], 1, generator=generator)[:, 0]
            tokens[:, t] = torch.where(start <= t, drawn, tokens[:, t])
        return tokens

    def reward(self, tokens: Tensor) -> Tensor:
        """``[B]`` float64 of ``[B, T]`` responses."""
        number = torch.zeros_like(tokens[:, 0])
        for decision in self.decisions:
            number = number * self.logits.shape[1] + tokens[:, decision]
        return self.rewards[number]

    def true_gradient(self) -> Tensor:
        """``[S, V]``, of the expected reward by the logits; all combinations of decisions are added up."""
        logits = self.logits.clone().requires_grad_()
        joint = logits.new_ones(1)
        for rows in self._decision_states():
            joint = (joint.unsqueeze(-1) * logits[rows].softmax(-1)).flatten()
        (gradient,) = torch.autograd.grad(joint @ self.rewards, logits)
        return gradient

    def influence(self) -> Tensor:
        """``[S]``, ``Var_a Q(state, a)``; 0 for noise."""
        influence, values = torch.zeros_like(self.logits[:, 0]), self.rewards
        for rows in reversed(self._decision_states()):
            of_choices, probs = values.view(-1, self.logits.shape[1]), self.probs[rows]
            values = (probs * of_choices).sum(-1)
            influence[rows] = (probs * (of_choices - values.unsqueeze(-1)).square()).sum(-1)
        return influence

    def _decision_states(self) -> list[slice]:
        return [slice(self.first_states[t], self.first_states[t + 1]) for t in self.decisions]


def make_rows(policy: TabularPolicy, tokens: Tensor, group: Tensor, **tree: Tensor) -> TrajectoryBatch:
    """Rewarded rows of one prompt token and a response each; `tree` has parents and branch positions."""
    mask = torch.ones(len(tokens), policy.length + 1, dtype=torch.bool)
    mask[:, 0] = False
    return make_batch(
        token_ids=torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=-1),
        lengths=torch.full((len(tokens),), policy.length + 1),
        response_mask=mask,
        rewards=policy.reward(tokens),
        group=group,
        **tree,
    )


def draw_roots(policy: TabularPolicy, sizes: Tensor, generator: torch.Generator) -> TrajectoryBatch:
    """``[P]`` numbers of roots of as many prompts."""
    group = torch.arange(len(sizes)).repeat_interleave(sizes)
    nothing = torch.zeros(len(group), policy.length, dtype=torch.int64)
    return make_rows(policy, policy.sample(nothing, torch.zeros_like(group), generator), group)
