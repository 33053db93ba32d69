"""Which tokens of a question's roots are drawn anew, and what part of a response each of them belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PARTS = ("thought", "call", "answer", "other")
"""Parts of a response, each with its tags."""

SURE = 0.05
"""Entropy in nats up to which a policy counts as sure of a token: about one of a hundred draws is another one."""

_LEAST_DRAWS = 4
"""Continuations of a decision: each half of them has a variance then."""

_MOST_TIMES = 4
"""Continuations of a decision at most, in multiples of the mean."""

_OTHER_SIDE = "\0"
"""Stands for each token that was not sampled."""
_SPANS = (
    # Of places that lie within one another the later one counts.
    ("thought", re.compile(rf"<think>[^{_OTHER_SIDE}]*?(?:</think>|(?=<answer>)|(?={_OTHER_SIDE})|$)")),
    ("answer", re.compile(rf"<answer>[^{_OTHER_SIDE}]*?(?:</answer>|$)|\\boxed\{{[^{_OTHER_SIDE}]*$")),
    # Between a call and its result there may be an end of turn.
    (
        "call",
        re.compile(
            rf"<([A-Za-z_][\w-]*)>(?:(?!<\1>)[^{_OTHER_SIDE}])*</\1>(?:<\|[^|<>]*\|>|[^{_OTHER_SIDE}<])*(?={_OTHER_SIDE})"
        ),
    ),
)


def parts_of(texts: Sequence[str], response_mask: Sequence[bool]) -> list[str]:
    r"""The part of the response that each token belongs to, by the text of it.

    A call is what stands in a pair of tags right before tool output, an answer what stands in ``<answer>`` or behind
    ``\boxed{`` in the last turn, a thought what stands in ``<think>``.

    Args:
        texts: ``T`` of the tokens.
        response_mask: ``T``, whether a token was sampled.
    """
    shown = [text if is_sampled else _OTHER_SIDE for text, is_sampled in zip(texts, response_mask, strict=True)]
    whole = "".join(shown)
    of_character = ["other"] * len(whole)
    for part, pattern in _SPANS:
        for found in pattern.finditer(whole):
            of_character[found.start() : found.end()] = [part] * (found.end() - found.start())
    parts, end = [], 0
    for text in shown:
        start, end = end, end + len(text)
        # A token that touches a tag stands for what the tag opens or closes.
        within = [part for part in of_character[start:end] if part != "other"]
        parts.append(within[0] if within else "other")
    return parts


def depths(response_mask: Tensor) -> Tensor:
    """``[B, T]`` share of a row's sampled tokens that come before a position, in [0, 1); 0 on others."""
    before = response_mask.cumsum(-1) - 1
    return (before / response_mask.sum(-1, keepdim=True).double()).where(response_mask, 0.0)


def share_continuations(entropies: Sequence[float], num: int) -> list[int]:
    """How often each decision is drawn anew: `num` times in the mean, or fewer.

    All get one half of the continuations alike. The other half goes to the decisions of which the policy is not sure,
    since a token that is drawn every time has no influence, however often that is. Where it is sure of all, or of none,
    all get the same. Nothing depends on a reward, so that no estimate gets a bias from it.

    Args:
        entropies: of the policy at each decision, in nats.
        num: at least 4.
    """
    least = max(_LEAST_DRAWS, num // 2)
    is_unsure = [entropy > SURE for entropy in entropies]
    if not any(is_unsure):
        is_unsure = [True] * len(entropies)
    more = min((num - least) * len(entropies) // max(1, sum(is_unsure)), _MOST_TIMES * num - least)
    return [least + more * gets_more for gets_more in is_unsure]


def choose_decisions(
    response_mask: Tensor, known: Tensor | None, num: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """Rows and positions of the tokens that are drawn anew.

    Tokens whose influence is known to be positive come first, those of the largest influence if there are too many. The
    rest is drawn at all depths alike: the other tokens, in the order of their depth, are cut into as many stretches
    of equal length as tokens are wanted, and one is drawn from each.

    Args:
        response_mask: ``[B, T]`` bool, the tokens to choose from.
        known: ``[B, T]`` influence, where an environment can tell.
        num: of tokens; fewer if there are fewer.
        generator: draws them.

    Returns:
        Sorted by row and position.
    """
    rows, positions = response_mask.nonzero(as_tuple=True)
    influence = torch.zeros(len(rows)) if known is None else known[rows, positions]
    first = (influence > 0).nonzero()[:, 0]
    first = first[influence[first].argsort(descending=True, stable=True)][:num]
    is_left = torch.ones(len(rows), dtype=torch.bool)
    is_left[first] = False
    left = is_left.nonzero()[:, 0]
    # Rows are mixed before they are sorted: equal depths must not prefer the first.
    left = left[torch.randperm(len(left), generator=generator)]
    left = left[depths(response_mask)[rows[left], positions[left]].argsort(stable=True)]
    wanted = min(num - len(first), len(left))
    edges = torch.arange(wanted + 1) * len(left) // max(1, wanted)
    offsets = (torch.rand(wanted, generator=generator) * edges.diff()).long()
    chosen = torch.cat([first, left[edges[:-1] + offsets]]).sort().values
    return list(zip(rows[chosen].tolist(), positions[chosen].tolist(), strict=True))
