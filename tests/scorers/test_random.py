import pytest
import torch

from appo.scorers import NoBranching, RandomPosition, TreeUniform
from tests.scorers.scored_batches import INF, context, two_results


def test_random_positions_follow_the_generator_and_nothing_else(batch):
    scores = [RandomPosition()(batch, context(seed)).values for seed in (0, 0, 1)]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_no_branching_refuses_every_position(batch):
    assert (NoBranching()(batch, context()).values == -INF).all()


def test_tree_nodes_are_the_prompt_and_every_tool_result_equally_likely():
    batch = two_results([1.0] * 6, rows=3000)
    values = TreeUniform()(batch, context()).values
    assert (values > -INF).nonzero()[:3].tolist() == [[0, 1], [0, 4], [0, 7]]
    best = values.argmax(-1)
    # 3,000 draws of a third: standard deviation 0.0086
    for position in (1, 4, 7):
        assert (best == position).float().mean().item() == pytest.approx(1 / 3, abs=0.035)
