"""What the policy would have done had it known how the trajectory ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.trajectory import Prompt
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class HindsightDivergence(Scorer):
    """Nats by which hindsight changes the log-prob of the sampled token.

    ``score_t = |log p(y_t | x, r, y_<t) - log p(y_t | x, y_<t)|``, both under the policy as it is now; the hindsight
    `r` is a text between prompt and response that tells the accepted answers and the reward of the trajectory.

    See HDL (https://arxiv.org/abs/2609.36864).
    """

    answer: str = "\nThe correct answer is {answer}."
    """Told where the prompt has answers, which stand for ``{answer}``, joined by "or"; empty never tells them."""
    verdict: str = "\nThe following response has the reward {reward}.\n"
    """Told where the trajectory has been rewarded; ``{reward}`` stands for the reward; empty never tells it."""

    def __post_init__(self) -> None:
        for name, word in (("answer", "{answer}"), ("verdict", "{reward}")):
            text = getattr(self, name)
            if text and word not in text:
                raise ValueError(f"{name} must be empty or hold {word}, got {text!r}")
        if not self.answer and not self.verdict:
            raise ValueError("answer and verdict must not both be empty, got two empty texts")

    def hindsight(self, prompt: Prompt, reward: float) -> str:
        """What is told of one trajectory.

        Raises:
            ValueError: if there is nothing to be told.
        """
        text = self.answer.replace("{answer}", " or ".join(prompt.answers)) if prompt.answers else ""
        if not math.isnan(reward):
            text += self.verdict.replace("{reward}", f"{reward:g}")
        if not text:
            raise ValueError(
                f"hindsight must tell an answer or a reward, got neither for prompt {prompt.id}: its answers are "
                f"{list(prompt.answers)} and its reward is {reward}"
            )
        return text

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        sequences, masks = [], []
        for trajectory, reward in zip(context.records(), batch.rewards.tolist(), strict=True):
            told = context.encode(self.hindsight(trajectory.prompt, reward))
            end = trajectory.prompt_length
            sequences.append(torch.cat([trajectory.token_ids[:end], told, trajectory.token_ids[end:]]))
            masks.append(
                torch.cat(
                    [
                        trajectory.response_mask[:end],
                        torch.zeros(len(told), dtype=torch.bool),
                        trajectory.response_mask[end:],
                    ]
                )
            )
        log_probs = torch.zeros_like(batch.old_log_probs)
        log_probs[batch.response_mask] = torch.cat(context.log_probs(sequences, masks)).to(log_probs)
        divergence = (log_probs - batch.old_log_probs).abs().where(batch.response_mask, 0.0)
        return Scores(
            divergence.where(batch.response_mask, float("-inf")), factors={"hindsight_divergence": divergence}
        )
