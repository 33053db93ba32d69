import torch

from appo.functional import NO_TURN, penalized_draws, turn_numbers, turn_openings, turn_starts

MASK = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)


def test_turns_begin_behind_what_was_not_sampled():
    assert turn_starts(MASK).nonzero().tolist() == [[0, 1], [0, 6], [0, 8], [1, 0]]


def test_turns_are_counted_from_0():
    assert turn_numbers(MASK).tolist() == [
        [NO_TURN, 0, 0, 0, NO_TURN, NO_TURN, 1, NO_TURN, 2, 2],
        [0, 0, *[NO_TURN] * 8],
    ]


def test_openings_add_up_the_first_tokens_of_each_turn_by_hand():
    values = torch.arange(20.0).reshape(2, 10).where(MASK, float("nan"))
    # Row 0: 1 + 2 of 1, 2, 3; 6 alone; 8 + 9. Row 1: 10 + 11.
    assert turn_openings(values, MASK, window=2).tolist() == [[0, 3, 3, 3, 0, 0, 6, 0, 17, 17], [21, 21, *[0] * 8]]


def test_an_empty_row_has_no_turns():
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert turn_openings(torch.ones(1, 3), nothing, window=5).tolist() == [[0, 0, 0]]


def test_each_hit_in_a_row_makes_the_next_one_harder_by_hand():
    odds = torch.tensor([1.0, 1.0, 1.0, 0.1, 1.0])
    # Factors 1, 0.75, 0.5 with hits in a row; 0.5 is no hit, and neither is 0.1; then the factor is 1 again.
    hits = penalized_draws(odds, torch.zeros(5, dtype=torch.int64), penalty=0.25, threshold=0.6)
    assert hits.tolist() == [True, True, False, False, True]


def test_groups_are_drawn_apart_whatever_stands_between_them():
    odds, group = torch.ones(6), torch.tensor([7, 2, 7, 2, 2, 7])
    hits = penalized_draws(odds, group, penalty=0.5, threshold=0.4)
    # Two hits leave nothing for the third of each group.
    assert hits.tolist() == [True, True, True, True, False, False]


def test_nothing_to_draw_is_no_error():
    assert penalized_draws(torch.empty(0), torch.empty(0, dtype=torch.int64), 0.1, 0.5).tolist() == []
