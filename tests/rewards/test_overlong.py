"""The penalty on the last tokens before the limit."""

from __future__ import annotations

import pytest

from appo.rewards import OverlongPenalty
from tests.rewards.responses import trajectory


@pytest.mark.parametrize(
    ("length", "reward"),
    # L = 20, buffer 8: from 12 tokens on, -(length - 12) / 8
    [(1, 0.0), (12, 0.0), (13, -0.125), (16, -0.5), (20, -1.0), (30, -1.0)],
)
def test_penalty_grows_over_the_buffer(length, reward):
    result = OverlongPenalty(max_tokens=20, buffer_tokens=8)(trajectory("x", num_sampled=length))
    assert result.reward == reward
    assert result.parts == {"overlong": float(reward < 0)}
    assert OverlongPenalty(max_tokens=20, buffer_tokens=8, penalty=0.5)(
        trajectory("x", num_sampled=length)
    ).reward == pytest.approx(0.5 * reward)


def test_tool_output_counts_unless_only_sampled_tokens_do():
    response = trajectory("x", num_sampled=12, num_given=4)
    assert OverlongPenalty(max_tokens=20, buffer_tokens=8)(response).reward == -0.5
    assert OverlongPenalty(max_tokens=20, buffer_tokens=8, counts="sampled")(response).reward == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_tokens": 0}, r"buffer_tokens must lie in \[1, max_tokens = 20\], got 0"),
        ({"buffer_tokens": 21}, r"buffer_tokens must lie in \[1, max_tokens = 20\], got 21"),
        ({"buffer_tokens": 8, "penalty": -1.0}, "penalty must be finite and not negative, got -1.0"),
        ({"buffer_tokens": 8, "counts": "words"}, "counts must be response or sampled, got 'words'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OverlongPenalty(max_tokens=20, **options)
