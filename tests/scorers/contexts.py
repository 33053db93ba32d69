"""Contexts with records, a tokenizer of letters, and a policy whose log-probs anybody can compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from appo.advantages import AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt, Trajectory
from appo.scorers import BatchContext

ANSWERS = ("7", "seven")


class Letters:
    """A token a letter."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


def log_prob(sequence: Sequence[int], position: int) -> float:
    """Of the token at a position, from all that stands before it."""
    before = sum((k + 1) * token_id for k, token_id in enumerate(sequence[:position]))
    return -((before + 3 * sequence[position]) % 101 + 1) / 50


def log_probs(sequences: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """What `Policy.log_probs` does."""
    values = []
    for sequence, mask in zip(sequences, masks, strict=True):
        assert sequence.shape == mask.shape
        assert mask.any()
        assert not mask[0]
        steps = torch.arange(1, len(sequence) + 1)
        before = (steps * sequence).cumsum(0) - steps * sequence
        values.append(-((before + 3 * sequence) % 101 + 1)[mask].double() / 50)
    return values


def records(batch: TrajectoryBatch) -> list[Trajectory]:
    """Trajectories of which the batch might have been made."""
    found = []
    for row, (length, prompt_length) in enumerate(
        zip(batch.lengths.tolist(), batch.prompt_lengths.tolist(), strict=True)
    ):
        token_ids = batch.token_ids[row, :length]
        name = str(int(batch.group[row]))
        found.append(
            Trajectory(
                prompt=Prompt(name, name, tuple(token_ids[:prompt_length].tolist()), ANSWERS),
                token_ids=token_ids,
                response_mask=batch.response_mask[row, :length],
                behavior_log_probs=batch.behavior_log_probs[row, :length],
                policy_versions=batch.policy_versions[row, :length],
                segments=(),
                tool_calls=(),
                finish_reason="eos",
            )
        )
    return found


def context_of(batch: TrajectoryBatch, seed: int = 0) -> BatchContext:
    """All that a scorer may ask for."""
    return BatchContext(torch.Generator().manual_seed(seed), records(batch), Letters(), log_probs)


def estimated(estimator: AdvantageEstimator, batch: TrajectoryBatch) -> Tensor:
    """The advantages of a batch with all that an estimator may ask for."""
    return estimator(batch, context_of(batch))
