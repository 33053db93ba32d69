"""A scorer that asks the policy on one process alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm
from appo.scorers import BatchContext, Scorer, Scores


@dataclass(frozen=True)
class AskingScorer(Scorer):
    """Surprisal, which the first process asks for once more and compares; the others ask for nothing."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        asking = context.records() if comm.rank() == 0 else []
        values = context.log_probs([each.token_ids for each in asking], [each.response_mask for each in asking])
        assert len(values) == len(asking)
        if asking:
            torch.testing.assert_close(torch.cat(values), batch.old_log_probs[batch.response_mask])
        return Scores((-batch.old_log_probs).where(batch.response_mask, float("-inf")))
