"""Why tokens were no branch points, asked of the same code that chose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from appo.commands.run_config import instantiate_plain
from appo.commands.view.steps import Saved
from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.rollouts import Branching, CandidateFilter, Limits
from appo.rollouts.branching import has_room, possible_parents


@dataclass
class Exclusions:
    """Tells the tokens of a run that no branch could leave at, and the trajectories.

    Attributes:
        branching: of the run.
        max_response_tokens: of one trajectory.
        masks_truncated: whether trajectories that were cut off count.
        tokenizer: of the policy.
    """

    branching: Branching
    max_response_tokens: int
    masks_truncated: bool
    tokenizer: Any

    @classmethod
    def of_run(cls, path: Path, config: DictConfig, tokenizer: Any) -> Exclusions | None:
        """Reads the options of a run; None of one that trains nothing.

        Args:
            path: of the config.
            config: what the run ran with; nothing that it names is imported.
            tokenizer: of its policy.

        Raises:
            ValueError: if its options are not those of this version.
        """
        if OmegaConf.select(config, "rollout.branching") is None:
            return None
        branching = instantiate_plain(path, config, "rollout.branching", Branching, "options of branching")
        limits = instantiate_plain(path, config, "rollout.limits", Limits, "limits of a trajectory")
        masks_truncated = OmegaConf.select(config, "rollout.rewards.truncated") == "mask"
        return cls(branching, limits.max_response_tokens, masks_truncated, tokenizer)

    @cached_property
    def _candidates(self) -> CandidateFilter:
        return CandidateFilter(self.tokenizer, self.branching.exclude)

    def of_tokens(self, trajectories: Sequence[Saved]) -> dict[str, Tensor]:
        """``[B, T]`` bool by reason: sampled tokens that no branch leaves at for it.

        Args:
            trajectories: of one prompt, parents before their branches, with token ids.
        """
        batch = _batch(trajectories)
        is_sampled, positions = batch.response_mask, torch.arange(batch.token_ids.shape[1])
        reasons: dict[str, Tensor] = {str(kind): mask for kind, mask in self._candidates.excluded(batch).items()}
        reasons["last token"] = is_sampled & (positions == (batch.lengths - 1).unsqueeze(-1))
        room = has_room(batch, self.max_response_tokens, self.branching.min_remaining)
        reasons["no room left"] = is_sampled & ~room
        if self.branching.min_entropy > 0.0:
            reasons[f"entropy below {self.branching.min_entropy:g}"] = is_sampled & (
                batch.entropies < self.branching.min_entropy
            )
        return {name: mask for name, mask in reasons.items() if mask.any()}

    def of_trajectories(self, trajectories: Sequence[Saved]) -> list[str]:
        """Why each may have no branches; empty where it may."""
        batch = _batch(trajectories)
        cut_off = torch.tensor([trajectory.record["finish_reason"] == "length" for trajectory in trajectories])
        counts = ~cut_off | (~batch.is_branch & (not self.masks_truncated))
        # Which of several may, with `per_trajectory`, is drawn: the draw is not repeated.
        allowed = possible_parents(
            batch, counts, replace(self.branching, selection="per_prompt"), lambda row: torch.Generator()
        )
        of_roots = batch.rewards[counts & ~batch.is_branch]
        is_flat = not bool((of_roots != of_roots[:1]).any())
        return [self._reason(i, batch, bool(counts[i]), is_flat) if not allowed[i] else "" for i in range(len(batch))]

    def _reason(self, row: int, batch: TrajectoryBatch, counts: bool, is_flat: bool) -> str:
        if not counts:
            return "it was cut off"
        if is_flat:
            return "the roots of the question have equal rewards (rollout.branching.parents)"
        return f"its reward is not {self.branching.parents} (rollout.branching.parents)"


def _batch(trajectories: Sequence[Saved]) -> TrajectoryBatch:
    rows = {trajectory.id: row for row, trajectory in enumerate(trajectories)}
    assert all(trajectory.token_ids is not None for trajectory in trajectories)

    def padded(columns: Sequence[Any]) -> Tensor:
        return pad_sequence([torch.from_numpy(column) for column in columns], batch_first=True)

    entropies = [
        np.nan_to_num(t.columns["entropies"]) if "entropies" in t.columns else np.zeros(len(t), dtype=np.float32)
        for t in trajectories
    ]
    return make_batch(
        padded([t.token_ids for t in trajectories]),
        torch.tensor([len(t) for t in trajectories]),
        padded([t.is_sampled for t in trajectories]),
        prompt_lengths=torch.tensor([t.prompt_length for t in trajectories]),
        entropies=padded(entropies),
        rewards=torch.tensor([float(t.record["reward"]) for t in trajectories]),
        parent=torch.tensor([NO_PARENT if t.parent is None else rows[t.parent] for t in trajectories]),
        branch_position=torch.tensor([NO_PARENT if t.parent is None else t.first_own - 1 for t in trajectories]),
    )
