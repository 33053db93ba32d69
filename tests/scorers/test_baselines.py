import torch

from appo.scorers import Entropy, NoBranching, RandomPosition
from tests.scorers.scored_batches import INF, generator


def test_entropy_scores_are_the_entropies(batch):
    scores = Entropy()(batch, generator())
    torch.testing.assert_close(scores.values[batch.response_mask], batch.entropies[batch.response_mask])


def test_random_positions_follow_the_generator_and_nothing_else(batch):
    scores = [RandomPosition()(batch, generator(seed)).values for seed in (0, 0, 1)]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_no_branching_refuses_every_position(batch):
    assert (NoBranching()(batch, generator()).values == -INF).all()
