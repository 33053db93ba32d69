"""Where branches may leave, how many there are, and the choice of their points."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import BranchPoint, Trajectory
from appo.functional import select_branch_points
from appo.scorers import Scores

Exclusion = Literal["whitespace", "punctuation", "special", "tags", "calls"]
"""Tokens that are no branch points: white space alone; punctuation and symbols alone; special ones; those that touch a
tag such as ``<search>``; the inside of a tool call."""

DEFAULT_EXCLUSIONS: tuple[Exclusion, ...] = ("whitespace", "special", "tags")

_TAG = re.compile(r"</?[A-Za-z_][\w-]*>")
_OTHER = "\0"
"""Stands for each token that was not sampled, so that no tag reaches over one."""
_END_OF_CALL = re.compile(rf"</([A-Za-z_][\w-]*)>[^{_OTHER}<]*{_OTHER}")


@dataclass(frozen=True)
class Branching:
    """How many branches there are, when they are chosen, and where they may leave."""

    num_trajectories: int = 16
    """Of a prompt, branches included."""
    num_roots: int = 8
    """Trajectories of a prompt that are sampled from the prompt itself, before branching."""
    when: Literal["iteration", "minibatch"] = "iteration"
    """`iteration` scores and branches all prompts before the first update; `minibatch` those of a mini-batch when it is
    drawn, with the policy that the mini-batches before it have updated."""
    selection: Literal["per_prompt", "per_trajectory"] = "per_prompt"
    """`per_prompt` pools the branches over a prompt's trajectories, `per_trajectory` gives each the same number."""
    split: Literal["keep", "resample"] = "keep"
    """`keep` shares the chosen token with the branch, `resample` draws it anew."""
    fallback: bool = True
    """Branches at positions that the scorer does not prefer when the preferred ones do not suffice."""
    repeat: bool = False
    """Branches several times from a position when even those do not suffice."""
    min_remaining_tokens: int = 1
    """Fewest tokens that a branch must have left under the response limit."""
    tool_calls: bool = True
    """Whether branches call tools, as they must for their outcome to say something of their parent; false ends a branch
    at its first call, which is what the authors' release comes to."""
    exclude: tuple[Exclusion, ...] = DEFAULT_EXCLUSIONS
    """Tokens that are no branch points: `whitespace` alone, `punctuation` and symbols alone, `special` ones, those that
    touch `tags`, the inside of tool `calls`. The last token of a trajectory never is one."""

    def __post_init__(self) -> None:
        if self.num_roots < 1:
            raise ValueError(f"rollout.branching.num_roots must be at least 1, got {self.num_roots}")
        if self.num_trajectories < self.num_roots:
            raise ValueError(
                f"rollout.branching.num_trajectories must be at least rollout.branching.num_roots = {self.num_roots}, "
                f"got {self.num_trajectories}"
            )
        if self.selection == "per_trajectory" and self.num_branches % self.num_roots:
            raise ValueError(
                "rollout.branching.num_trajectories - rollout.branching.num_roots must be a multiple of "
                f"rollout.branching.num_roots = {self.num_roots} with rollout.branching.selection=per_trajectory, "
                f"got {self.num_branches}"
            )
        check_exclusions(self.exclude)

    @property
    def num_branches(self) -> int:
        """Branches of a prompt."""
        return self.num_trajectories - self.num_roots

    @property
    def budget(self) -> int:
        """Branches of a prompt or, with `per_trajectory`, of a trajectory."""
        return self.num_branches // self.num_roots if self.selection == "per_trajectory" else self.num_branches


def choose_branch_points(
    scores: Scores, allowed: Tensor, batch: TrajectoryBatch, trajectories: Sequence[Trajectory], branching: Branching
) -> list[BranchPoint]:
    """The points at which branches leave, prompt by prompt, best first; fewer than asked for where positions run short.

    Args:
        scores: of the positions of `batch`.
        allowed: ``[B, T]`` bool, positions that a branch may leave from at all.
        batch: of `trajectories`.
        trajectories: the possible parents, a row each.
        branching: how many points, and how they are taken.
    """
    chosen = select_branch_points(
        scores.values,
        scores.preferred,
        allowed,
        batch.group,
        budget=branching.budget,
        scope=branching.selection,
        fallback=branching.fallback,
        repeat=branching.repeat,
    )
    # A branch shares positions up to its point: to draw the chosen token anew it leaves one position before.
    shift = 1 if branching.split == "resample" or scores.at_turns else 0
    return [
        BranchPoint(trajectories[row], position - shift, score)
        for row, position, score in zip(*(column.tolist() for column in chosen), strict=True)
    ]


class CandidateFilter:
    """Tells the tokens that leave a branch something to decide from those that do not.

    Args:
        tokenizer: of the policy.
        exclude: kinds of tokens that are no branch points.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, exclude: Sequence[Exclusion] = DEFAULT_EXCLUSIONS) -> None:
        self.exclude = frozenset(exclude)
        special = set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
        # The last entry stands for tokens that were not sampled, or that the tokenizer does not know.
        self._texts = [*texts, _OTHER]
        self._widths = torch.tensor([len(text) for text in self._texts])
        self._allowed = torch.tensor(
            [
                not (
                    ("special" in self.exclude and token_id in special)
                    or ("whitespace" in self.exclude and not text.strip())
                    or ("punctuation" in self.exclude and _is_punctuation(text))
                )
                for token_id, text in enumerate(texts)
            ]
        )

    def __call__(self, batch: TrajectoryBatch) -> Tensor:
        """Where a branch may leave.

        Args:
            batch: possible parents.

        Returns:
            ``[B, T]`` bool: sampled, known to the tokenizer, not the last token, of no excluded kind.
        """
        known = batch.token_ids < len(self._allowed)
        allowed = self._allowed[batch.token_ids.where(known, 0)] & known
        is_inner = torch.arange(batch.token_ids.shape[1]) < (batch.lengths - 1).unsqueeze(-1)
        candidates = batch.response_mask & allowed & is_inner
        if self.exclude & {"tags", "calls"}:
            text_ids = batch.token_ids.where(batch.response_mask & known, len(self._texts) - 1)
            for row, ends in enumerate(self._widths[text_ids].cumsum(-1)):
                text = "".join(map(self._texts.__getitem__, text_ids[row].tolist()))
                candidates[row] &= ~self._in_markup(text, ends)
        return candidates

    def _in_markup(self, text: str, ends: Tensor) -> Tensor:
        """Tokens that overlap an excluded tag or call.

        Args:
            text: of the whole row.
            ends: ``[T]`` int64, where the text of each token ends.

        Returns:
            ``[T]`` bool.
        """
        spans = list(self._spans(text))
        if not spans:
            return torch.zeros_like(ends, dtype=torch.bool)
        first, last = torch.tensor(spans).T.contiguous()
        edges = torch.zeros(len(ends) + 1, dtype=torch.int64)
        edges.index_add_(0, torch.searchsorted(ends, first, right=True), torch.ones_like(first))
        edges.index_add_(0, torch.searchsorted(ends, last - 1, right=True) + 1, -torch.ones_like(last))
        return edges.cumsum(0)[:-1] > 0

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Character ranges of the excluded tags and calls, end exclusive, none of them empty."""
        if "tags" in self.exclude:
            yield from (tag.span() for tag in _TAG.finditer(text))
        if "calls" in self.exclude:
            for closing in _END_OF_CALL.finditer(text):
                opening = f"<{closing[1]}>"
                start = text.rfind(opening, text.rfind(_OTHER, 0, closing.start()) + 1, closing.start())
                if 0 <= start < closing.start() - len(opening):
                    yield start + len(opening), closing.start()


def check_exclusions(exclude: Sequence[str]) -> None:
    """Refuses kinds of tokens that there are not.

    Raises:
        ValueError: names the first of them.
    """
    known = get_args(Exclusion)
    for kind in exclude:
        if kind not in known:
            raise ValueError(f"rollout.branching.exclude must name kinds among {', '.join(known)}, got {kind!r}")


def has_room(batch: TrajectoryBatch, max_response_tokens: int, min_remaining: int) -> Tensor:
    """Positions behind which a branch has room.

    Args:
        batch: possible parents.
        max_response_tokens: limit of one trajectory.
        min_remaining: fewest tokens a branch must have left under that limit.

    Returns:
        ``[B, T]`` bool, True on sampled tokens with so much room behind them.
    """
    positions = torch.arange(batch.token_ids.shape[1])
    last_position = batch.prompt_lengths + max_response_tokens - min_remaining - 1
    return batch.response_mask & (positions <= last_position.unsqueeze(-1))


def _is_punctuation(text: str) -> bool:
    stripped = text.strip()
    return bool(stripped) and all(unicodedata.category(character)[0] in "PS" for character in stripped)
