"""How much nearer a turn brings the policy to the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.functional import turn_numbers, turn_starts
from appo.scorers.base import SCORERS, Scorer, Scores, ScoringContext


@SCORERS.register
@dataclass(frozen=True)
class InformationGain(Scorer):
    """Branches before the turns that have changed the probability of the accepted answer most.

    ``p_k = exp(mean log-prob of the answer's tokens)`` behind turn `k` and its tool results, ``p_0`` behind the prompt;
    the score of a turn is ``|p_k - p_(k-1)|``. The last turn answers: nothing is gained behind it, and its score is 0.
    The answer is the first of those that are accepted.

    See "Information Gain-based Policy Optimization" (https://arxiv.org/abs/2510.14967).
    """

    reads_log_probs = False

    opening: str = "<answer>"
    """Text between the turns and the answer, as the policy opens its answers."""

    def turn_gains(self, batch: TrajectoryBatch, context: ScoringContext) -> Tensor:
        """``[B, T]``: on the tokens of turn `k` ``p_k - p_(k-1)``; 0 on the last turn and on what was not sampled.

        The turn rewards of the source, for advantages of your own. All processes call it at the same time.

        Raises:
            ValueError: if a prompt has no answers.
        """
        starts = turn_starts(batch.response_mask)
        sequences, masks = [], []
        opening = context.encode(self.opening)
        for row, trajectory in enumerate(context.records()):
            answer = context.encode((*trajectory.prompt.answers, "")[0])
            if not len(answer):
                raise ValueError(
                    "InformationGain must have prompts with answers that are not empty, got "
                    f"{list(trajectory.prompt.answers)} for prompt {trajectory.prompt.id}"
                )
            positions = starts[row].nonzero()[:, 0].tolist()
            # Before each turn: behind the prompt, and behind all turns but the last; of a single turn nothing is asked.
            for position in positions if len(positions) > 1 else []:
                sequences.append(torch.cat([trajectory.token_ids[:position], opening, answer]))
                masks.append(torch.arange(len(sequences[-1])) >= position + len(opening))
        values = [float(log_probs.double().mean().exp()) for log_probs in context.log_probs(sequences, masks)]
        gains = torch.zeros(batch.token_ids.shape, dtype=batch.entropies.dtype)
        turns = turn_numbers(batch.response_mask)
        first = 0
        for row, number in enumerate(starts.sum(-1).tolist()):
            if number > 1:
                before = torch.tensor(values[first : first + number], dtype=gains.dtype)
                of_turn = torch.cat([before.diff(), torch.zeros(1, dtype=gains.dtype)])
                gains[row] = of_turn[turns[row].clamp(min=0)].where(batch.response_mask[row], 0.0)
                first += number
        return gains

    def __call__(self, batch: TrajectoryBatch, context: ScoringContext) -> Scores:
        gains = self.turn_gains(batch, context)
        values = gains.abs().where(turn_starts(batch.response_mask), float("-inf"))
        return Scores(values, factors={"information_gain": gains}, at_turns=True)
