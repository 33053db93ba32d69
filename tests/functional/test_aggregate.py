import pytest
import torch

from appo.functional import aggregation_weights

LOSSES = torch.tensor([[1.0, 2.0, 3.0, 9.0], [10.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
BY_HAND = {
    "token-mean": (1 + 2 + 3 + 10) / 4,
    "sequence-mean": (2 + 10) / 2,  # the row without tokens does not count
    "sequence-sum": (6 + 10) / 2,
    "constant": (6 + 10) / 8 / 2,
}


@pytest.mark.parametrize("mode", BY_HAND)
def test_modes_by_hand(mode):
    weights = aggregation_weights(MASK, mode, length=8)
    torch.testing.assert_close((LOSSES * weights).sum().item(), BY_HAND[mode])
    assert (weights[~MASK] == 0).all()


@pytest.mark.parametrize("mode", BY_HAND)
def test_shares_of_parts_add_up_with_the_totals_of_the_whole(mode):
    totals = {"num_tokens": 4, "num_rows": 2, "length": 8}
    shares = [
        (LOSSES[row : row + 1] * aggregation_weights(MASK[row : row + 1], mode, **totals)).sum() for row in range(3)
    ]
    torch.testing.assert_close(sum(shares).item(), BY_HAND[mode])


@pytest.mark.parametrize("mode", BY_HAND)
def test_nothing_selected_weighs_nothing(mode):
    assert (aggregation_weights(torch.zeros_like(MASK), mode, length=8) == 0).all()


def test_an_unknown_mode_and_a_missing_length_are_refused():
    with pytest.raises(ValueError, match="got 'mean' with length None"):
        aggregation_weights(MASK, "mean")
    with pytest.raises(ValueError, match="constant with a length, got 'constant' with length None"):
        aggregation_weights(MASK, "constant")
