import torch

from appo.scorers import Entropy
from tests.scorers.scored_batches import generator


def test_entropy_scores_are_the_entropies(batch):
    scores = Entropy()(batch, generator())
    torch.testing.assert_close(scores.values[batch.response_mask], batch.entropies[batch.response_mask])
