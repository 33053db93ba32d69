import torch

from appo.scorers import Entropy
from tests.scorers.scored_batches import context


def test_entropy_scores_are_the_entropies(batch):
    scores = Entropy()(batch, context())
    torch.testing.assert_close(scores.values[batch.response_mask], batch.entropies[batch.response_mask])
