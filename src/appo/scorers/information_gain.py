"""How much nearer a turn brings the policy to the answer."""

from __future__ import annotations

from dataclasses import dataclass

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.turn_gains import turn_gains
from appo.functional import turn_starts
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class InformationGain(Scorer):
    """Branches before the turns that have changed the probability of the accepted answer most.

    The score of a turn is ``|p_k - p_(k-1)|`` of `turn_gains`. The last turn answers: nothing is gained behind it, and
    its score is 0.

    See "Information Gain-based Policy Optimization" (https://arxiv.org/abs/2510.14967).
    """

    reads_log_probs = False

    opening: str = "<answer>"
    """Text between the turns and the answer, as the policy opens its answers."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        gains = turn_gains(batch, context, self.opening)
        values = gains.abs().where(turn_starts(batch.response_mask), float("-inf"))
        return Scores(values, factors={"information_gain": gains}, at_turns=True)
