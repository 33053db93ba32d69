"""Advantages from point to point, on a tree that can be counted by hand, and on trees of any depth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from appo.advantages import NodeValueAdvantage, SegmentAdvantage, SiblingAdvantage
from appo.functional import segments
from tests.advantages.contexts import NO_CONTEXT
from tests.advantages.released_example import released_example
from tests.properties.batches import few, trajectory_batches


def test_siblings_by_hand():
    # Of the first root, worth 1, a branch worth 0.5 left behind position 1, and one worth -1 behind position 3. From
    # the latter on: 1 against -1. Between the points the root is worth the mean of these, 0, against 0.5. Before
    # the first point it is worth 0.25, against 0 of the other root.
    advantages = SiblingAdvantage()(released_example(), NO_CONTEXT)
    expected = [[0.25, 0.25, -0.5, -0.5, 2.0], [-0.25] * 4 + [0.0], [0.25, 0.25, 0.5, 0.5, 0.5]]
    expected.append([0.25, 0.25, -0.5, -0.5, -2.0])
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_segments_by_hand():
    # The same with means that include the ending itself: of two endings, half the difference.
    halved = torch.tensor([[0.125, 0.125, -0.25, -0.25, 1.0], [-0.125] * 4 + [0.0]])
    torch.testing.assert_close(SegmentAdvantage()(released_example(), NO_CONTEXT)[:2], halved)


def test_tokens_that_the_policy_was_sure_of_are_left_out():
    batch = released_example()
    batch.old_log_probs[0] = torch.tensor([0.95, 0.89, 0.95, 0.5, 0.91]).log()
    advantages = SegmentAdvantage(max_probability=0.9)(batch, NO_CONTEXT)
    assert advantages[0].bool().tolist() == [False, True, False, True, False]
    assert SegmentAdvantage(max_probability=0.9).reads_log_probs
    assert not SegmentAdvantage().reads_log_probs


def test_a_value_that_leans_towards_better_endings_is_higher():
    batch = released_example()
    plain, greedy = SegmentAdvantage()(batch, NO_CONTEXT), NodeValueAdvantage(temperature=0.01)(batch, NO_CONTEXT)
    # The best ending of a point has nothing to gain over it, the other one all that it is behind.
    torch.testing.assert_close(greedy[0, 4], torch.tensor(0.0), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(greedy[3, 4], torch.tensor(-2.0), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(NodeValueAdvantage(temperature=float("inf"))(batch, NO_CONTEXT), plain)


@few
@given(trajectory_batches())
def test_the_siblings_of_a_point_add_up_to_nothing(batch):
    sums: dict[tuple[int, int], float] = {}
    found = segments(
        batch.rewards, batch.group, batch.parent, batch.branch_position, lambda values: sum(values) / len(values)
    )
    for segment in found:
        at_root = segment.start == 0
        parent = int(batch.parent[segment.row])
        begins_here = parent >= 0 and segment.start == int(batch.branch_position[segment.row]) + 1
        place = (
            -1 - int(batch.group[segment.row]) if at_root else parent if begins_here else segment.row,
            segment.start,
        )
        sums[place] = sums.get(place, 0.0) + SiblingAdvantage().of_segment(segment)
    assert all(abs(value) < 1e-9 for value in sums.values())


@few
@given(trajectory_batches())
def test_the_segments_of_a_trajectory_add_up_to_what_it_is_above_its_prompt(batch):
    """Differences of values telescope, from the prompt to the reward."""
    advantages = SegmentAdvantage()
    found = segments(batch.rewards, batch.group, batch.parent, batch.branch_position, advantages.combine)
    gains: dict[int, list[tuple[int, float]]] = {}
    for segment in found:
        gains.setdefault(segment.row, []).append((segment.start, advantages.of_segment(segment)))
    for row in range(len(batch)):
        total, at, end = 0.0, row, 10**9
        while at >= 0:
            total += sum(gain for start, gain in gains[at] if start <= end)
            at, end = int(batch.parent[at]), int(batch.branch_position[at])
        roots = [s for s in found if s.start == 0 and batch.group[s.row] == batch.group[row]]
        prompt = sum(segment.value for segment in roots) / len(roots)
        assert total == pytest.approx(float(batch.rewards[row]) - prompt, abs=1e-9)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        NodeValueAdvantage(temperature=0.0)
    with pytest.raises(ValueError, match=r"max_probability must lie in \(0, 1\], got 0\.0"):
        SegmentAdvantage(max_probability=0.0)
