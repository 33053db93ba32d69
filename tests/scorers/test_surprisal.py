import re
from dataclasses import replace

import pytest
import torch

from appo.scorers import SegmentCut, Surprisal
from tests.scorers.scored_batches import INF, context, one_row


def test_surprisal_is_what_the_current_policy_gives_the_token():
    scores = Surprisal()(one_row([0.5, -1.0], [1.0, 1.0]), context())
    # log-probs -1 + 0.5 and -1 - 1
    assert scores.values.tolist() == [[-INF, 0.5, 2.0]]
    assert scores.factors["surprisal"][0, 1:].tolist() == [0.5, 2.0]


def test_every_second_uncertain_token_is_a_cut_point_by_hand():
    row = one_row([0.0] * 6, [1.0] * 6)
    probabilities = torch.tensor([[1.0, 0.8, 0.95, 0.5, 0.91, 0.7, 0.1]])
    scores = SegmentCut(interval=2)(replace(row, behavior_log_probs=probabilities.log()), context())
    # Uncertain: positions 1, 3, 5, 6, of which the second and the fourth are cut points.
    assert scores.values.tolist() == [[-INF, 0.0, -INF, 1.0, -INF, 0.0, 0.5]]
    assert scores.preferred.nonzero()[:, 1].tolist() == [3, 6]


def test_cut_points_go_by_the_policy_that_sampled():
    assert not SegmentCut.reads_log_probs
    row = one_row([0.9] * 5, [1.0] * 5)  # sampled with exp(-1) = 0.37, and of probability 0.9 now
    assert SegmentCut()(row, context()).preferred.nonzero().tolist() == [[0, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 0.0}, "probability must lie in (0, 1], got 0.0"),
        ({"probability": 1.1}, "probability must lie in (0, 1], got 1.1"),
        ({"interval": 0}, "interval must be positive, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SegmentCut(**options)
