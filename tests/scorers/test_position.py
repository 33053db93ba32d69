import pytest

from appo.scorers import Position
from tests.scorers.scored_batches import INF, context, one_row, two_results


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [("early", [1.0, 0.75, 0.5, 0.25, 0.0]), ("late", [0.0, 0.25, 0.5, 0.75, 1.0]), ("middle", [0, 0.5, 1.0, 0.5, 0])],
)
def test_the_position_counts_sampled_tokens(prefer, expected):
    assert Position(prefer)(one_row([0.0] * 5, [1.0] * 5), context()).values[0].tolist() == [-INF, *expected]


def test_tool_output_takes_no_place():
    values = Position("late")(two_results([1.0] * 6), context()).values[0]
    assert values[[1, 2, 4, 5, 7, 8]].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_a_place_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="prefer must be early, middle, late, got 'first'"):
        Position("first")
