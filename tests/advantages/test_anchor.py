"""Steps that began in the same state, by hand."""

from __future__ import annotations

import pytest
import torch

from appo.advantages import AnchorStateAdvantage
from appo.core.collate import make_batch
from tests.advantages.contexts import NO_CONTEXT
from tests.scorers.contexts import estimated


def test_steps_are_compared_with_those_that_answer_the_same_result():
    # A prompt, a turn, a result, a turn, padding. The results of the first two trajectories are the same token.
    mask = torch.tensor([[0, 1, 0, 1, 0]] * 3, dtype=torch.bool)
    batch = make_batch(
        token_ids=torch.tensor([[5, 1, 9, 1, 0], [5, 2, 9, 2, 0], [5, 1, 8, 1, 0]]),
        lengths=torch.tensor([4, 4, 4]),
        response_mask=mask,
        prompt_lengths=torch.tensor([1, 1, 1]),
        rewards=torch.tensor([1.0, 0.0, 0.5]),
    )
    advantages = AnchorStateAdvantage(weight=2.0, discount=0.5)(batch, NO_CONTEXT)
    # Trajectories: 0.5, -0.5, 0. First turns, worth half of the reward: 0.5, 0, 0.25 around 0.25. Second turns: the
    # first two around 0.5; nobody else has seen what the third has.
    expected = torch.tensor([[0.5 + 2 * 0.25, 0.5 + 2 * 0.5], [-0.5 - 2 * 0.25, -0.5 - 2 * 0.5], [0.0, 0.0]])
    torch.testing.assert_close(advantages[mask].reshape(3, 2), expected)
    assert not advantages[~mask].any()


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"weight must not be negative, got -1.0"):
        AnchorStateAdvantage(weight=-1.0)
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\], got 2.0"):
        AnchorStateAdvantage(discount=2.0)


def two_rooms(trajectory):
    """The room of each turn: the last token of what it answers, whatever was said around it."""
    return ["start", "hall" if int(trajectory.token_ids[2]) in (8, 9) else "cellar"]


def three_rooms():
    mask = torch.tensor([[0, 1, 0, 1]] * 3, dtype=torch.bool)
    return make_batch(
        token_ids=torch.tensor([[5, 1, 9, 1], [5, 2, 8, 2], [5, 1, 7, 1]]),
        lengths=torch.tensor([4, 4, 4]),
        response_mask=mask,
        prompt_lengths=torch.tensor([1, 1, 1]),
        rewards=torch.tensor([1.0, 0.0, 0.5]),
    )


@pytest.mark.parametrize("state_key", [two_rooms, "tests.advantages.test_anchor:two_rooms"])
def test_an_environment_says_which_states_are_the_same(state_key):
    batch = three_rooms()
    by_room = estimated(AnchorStateAdvantage(discount=1.0, state_key=state_key), batch)
    by_token = estimated(AnchorStateAdvantage(discount=1.0), batch)
    # The second turns of the first two rows: token for token nobody else saw what they did; the hall is one room.
    assert (by_room - by_token)[:, 3].tolist() == [0.5, -0.5, 0.0]
    torch.testing.assert_close(by_room[:, 1], by_token[:, 1])


def test_a_state_for_each_turn_is_asked_for():
    with pytest.raises(ValueError, match=r"^state_key must return a state for each of the 2 turns of .* got 1$"):
        estimated(AnchorStateAdvantage(state_key=lambda trajectory: ["hall"]), three_rooms())
