"""How much one decision matters: the variance of the reward, split into that decision's part and the rest.

At a position of a trajectory the policy draws a token `a`, and something follows that earns the reward `R`:

``Var R = Var_a Q + E_a Var(R | a)`` with ``Q(a) = E(R | a)``, all of it given the tokens before the position.

The left side is large wherever the outcome is open, whatever is decided next; the first term on the right is the
influence of this decision. Both are estimated from `K` continuations that draw the token and what follows anew.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ENOUGH = 200
"""Permutations that come out with as much influence, after which a p-value is known well enough."""


class RewardVariance(NamedTuple):
    """Estimates at `P` positions, ``[P]`` each.

    Attributes:
        mean: of the reward, ``V = E_a Q``.
        total: ``Var R``, without bias.
        influence: ``Var_a Q``, which may be negative; NaN where all `K` tokens differ.
    """

    mean: Tensor
    total: Tensor
    influence: Tensor


def reward_variance(rewards: Tensor, tokens: Tensor, mask: Tensor | None = None) -> RewardVariance:
    """Estimates the variance of the reward, and the part of it that the token decides.

    One-way analysis of variance with random effects, by the method of moments; continuations of one token are a group.
    With ``n_i`` continuations of token `i`, their mean ``q_i`` and variance ``s_i^2`` (divisor ``n_i - 1``), and the
    mean `V` of all,

    ``Var_a Q  =  (sum_i n_i (q_i - V)^2 - sum_i s_i^2 (1 - n_i / K)) / (K - 1)``

    The second sum is what the first one owes to the noise of few continuations. A token that was drawn once has no
    variance of its own and takes the pooled one, ``sum_i (n_i - 1) s_i^2 / sum_i (n_i - 1)``. The divisor of textbooks
    for groups of unequal sizes, ``K - sum_i n_i^2 / K``, is for effects that have nothing to do with the size of their
    group. Here a group is large because the policy draws its token often, and a variance under the policy, in which
    tokens count by their probability, has the divisor ``K - 1``.

    Nothing is clipped: of decisions that do not matter, about half of the estimates are negative, and their mean is 0.
    The estimate has no bias where tokens differ in mean and not in variance, and next to none elsewhere; without the
    probabilities of the tokens there is none without bias for all cases.

    See Searle, Casella & McCulloch, "Variance Components" (https://doi.org/10.1002/9780470316856), chapter 3.

    Args:
        rewards: ``[P, K]`` of the continuations.
        tokens: ``[P, K]`` int64, the token that each of them drew; equal ones are the same choice.
        mask: ``[P, K]`` bool, False on the right where a position has fewer than `K` continuations; None: all have `K`.

    Raises:
        ValueError: if a position has fewer than two continuations.
    """
    return _variance(rewards, *_groups(tokens, mask))


def _groups(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``[P, K]`` numbers, equal where position and token are, padding apart; and ``[P, K]`` mask.

    Raises:
        ValueError: as `reward_variance`.
    """
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    if (fewest := int(mask.sum(-1).min())) < 2:
        raise ValueError(f"rewards must be of at least 2 continuations a position, got {fewest}")
    distinct, of_token = tokens.unique(return_inverse=True)
    of_token = of_token.where(mask, len(distinct))
    rows = torch.arange(len(tokens)).unsqueeze(-1)
    ids: Tensor = (rows * (len(distinct) + 1) + of_token).unique(return_inverse=True)[1]
    return ids, mask


def _variance(rewards: Tensor, ids: Tensor, mask: Tensor) -> RewardVariance:
    """`reward_variance` of continuations whose tokens are told apart by `_groups`."""
    zeros = rewards.new_zeros(int(ids.max()) + 1)

    def group_sums(values: Tensor) -> Tensor:
        return zeros.index_add(0, ids.flatten(), values.flatten())[ids]

    is_there = mask.to(rewards.dtype)
    num = is_there.sum(-1, keepdim=True)
    sizes = group_sums(is_there).clamp(min=1.0)
    # Counted from the first reward: the mean of equal floats may differ from them in the last bit.
    shifted = (rewards - rewards[:, :1]).where(mask, 0.0)
    mean = shifted.sum(-1, keepdim=True) / num
    q = group_sums(shifted) / sizes
    squares = (shifted - q).square()
    # Each continuation stands for its share of its token: sums over tokens become sums over continuations.
    num_tokens = (is_there / sizes).sum(-1, keepdim=True).round()
    pooled = squares.sum(-1, keepdim=True) / (num - num_tokens)
    noise = torch.where(sizes > 1, group_sums(squares) / (sizes - 1.0), pooled)
    between = ((q - mean).square() * is_there).sum(-1, keepdim=True)
    owed = (noise * (1.0 / sizes - 1.0 / num) * is_there).sum(-1, keepdim=True)
    # Of one token it is 0, not what rounding leaves of that: ranks would tell decisions apart by it.
    influence = ((between - owed) / (num - 1)).where(num_tokens > 1, 0.0)
    total = ((shifted - mean).square() * is_there).sum(-1, keepdim=True) / (num - 1)
    return RewardVariance((mean + rewards[:, :1]).squeeze(-1), total.squeeze(-1), influence.squeeze(-1))


def influence_p_values(
    rewards: Tensor, tokens: Tensor, num_samples: int, generator: torch.Generator, mask: Tensor | None = None
) -> Tensor:
    """How often rewards that have nothing to do with the token would come out with at least this influence.

    A permutation test: continuations keep their tokens and exchange their rewards. It holds for every number of them
    and every distribution of rewards. A position takes no further permutations once 200 of them have come out with as
    much, the `l`-th the last of these: its value is ``200 / l``, as sure as a large one need be.

    See Besag & Clifford, "Sequential Monte Carlo p-values" (https://doi.org/10.1093/biomet/78.2.301).

    Args:
        rewards: ``[P, K]``, as `reward_variance` takes them.
        tokens: ``[P, K]`` int64, likewise.
        num_samples: `S`, permutations at most; the smallest value is ``1 / (S + 1)``.
        generator: draws them.
        mask: ``[P, K]``, likewise.

    Returns:
        ``[P]`` in (0, 1], 1 where one token was drawn or all rewards are equal; NaN where all tokens differ.
    """
    ids, mask = _groups(tokens, mask)
    _, total, influence = _variance(rewards, ids, mask)
    p_values = torch.ones_like(influence).where(~influence.isnan(), float("nan"))
    # The others cannot come out otherwise.
    differs = [((values != values[:, :1]) & mask).any(-1) for values in (rewards, tokens)]
    rows = (differs[0] & differs[1] & ~influence.isnan()).nonzero()[:, 0]
    if not len(rows):
        return p_values
    # Sums in another order differ in the last digits.
    columns = [rewards[rows], ids[rows], mask[rows], influence[rows] - 1e-9 * total[rows], torch.zeros(len(rows))]
    for number in range(1, num_samples + 1):
        rewards, ids, mask, least, exceeding = columns
        # Padding stays where it is, at the end.
        order = torch.rand(rewards.shape, generator=generator).where(mask, 1.0).argsort(-1)
        exceeding += _variance(rewards.gather(-1, order), ids, mask).influence >= least
        is_open = exceeding < _ENOUGH
        if not is_open.all():
            p_values[rows[~is_open]] = _ENOUGH / number
            rows, columns = rows[is_open], [column[is_open] for column in columns]
            if not len(rows):
                return p_values
    p_values[rows] = ((columns[-1] + 1.0) / (num_samples + 1.0)).to(p_values)
    return p_values


def bootstrap_variance(
    rewards: Tensor, tokens: Tensor, num_samples: int, generator: torch.Generator, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Estimates of `reward_variance` from continuations drawn with replacement.

    Their quantiles are an interval. It covers less than it says where a token that decides is rare: among few
    continuations it may be missing altogether.

    Args:
        rewards: ``[P, K]``, as `reward_variance` takes them.
        tokens: ``[P, K]`` int64, likewise.
        num_samples: `S`, how often as many continuations of each position are drawn as it has.
        generator: draws them.
        mask: ``[P, K]``, likewise.

    Returns:
        ``[S, P]`` of `influence`, NaN where all tokens drawn differ, and ``[S, P]`` of `total`.
    """
    ids, mask = _groups(tokens, mask)
    num = mask.sum(-1, keepdim=True)
    samples = []
    for _ in range(num_samples):
        index = (torch.rand(rewards.shape, generator=generator, dtype=torch.float64) * num).long()
        samples.append(_variance(rewards.gather(-1, index), ids.gather(-1, index).where(mask, ids), mask))
    return torch.stack([s.influence for s in samples]), torch.stack([s.total for s in samples])
