from __future__ import annotations

import pytest
import torch

from appo.commands.pilot.positions import SURE, choose_decisions, depths, parts_of, share_continuations


def split(*pieces: tuple[str, str, bool]) -> tuple[list[str], list[bool], list[str]]:
    """Texts, mask and parts of pieces that are split at white space."""
    tokens = [(token, part, flag) for text, part, flag in pieces for token in text.split("|")]
    return [t for t, _, _ in tokens], [flag for *_, flag in tokens], [part for _, part, _ in tokens]


def test_parts_of_a_response_with_two_turns():
    texts, mask, expected = split(
        ("What| is| it|?", "other", False),
        ("<think>| I| look| </think>", "thought", True),
        ("<search>| it| </|search>", "call", True),
        (" \n", "call", True),
        ("<result>| it is <answer> 4 </answer>| </result>", "other", False),
        ("<think>| Done| </think>", "thought", True),
        ("<answer>| \\boxed{| 4| }| </answer>", "answer", True),
        ("<eos>", "other", True),
    )
    assert parts_of(texts, mask) == expected


def test_parts_of_a_call_in_json_and_of_an_answer_in_a_box():
    texts, mask, expected = split(
        ("Let| me| see|.\n", "other", True),
        ('<tool_call>|{"name": "search"}|</tool_call>|END', "call", True),
    )
    texts[-1] = "<|im_end|>"
    more = split(("result", "other", False), ("It| is| ", "other", True), ("\\boxed{|4|}", "answer", True))
    texts, mask, expected = texts + more[0], mask + more[1], expected + more[2]
    assert parts_of(texts, mask) == expected


def test_what_was_cut_off_belongs_to_what_was_opened():
    texts, mask, expected = split(("<think>| I| wonder", "thought", True))
    assert parts_of(texts, mask) == expected
    texts, mask, expected = split(("<answer>| I| wonder", "answer", True))
    assert parts_of(texts, mask) == expected


MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)


def test_depths_count_sampled_tokens():
    assert depths(MASK).tolist() == [[0, 0, 0.25, 0, 0.5, 0.75], [0, 0, 0, 0.5, 0, 0]]


def test_all_tokens_are_chosen_where_there_are_few():
    chosen = choose_decisions(MASK, None, 9, torch.Generator())
    assert chosen == [tuple(place) for place in MASK.nonzero().tolist()]


def test_decisions_are_drawn_at_all_depths_alike():
    mask = torch.ones(3, 60, dtype=torch.bool)
    for seed in range(5):
        chosen = choose_decisions(mask, None, 12, torch.Generator().manual_seed(seed))
        assert len({*chosen}) == 12
        # One in each twelfth of the depth, whichever row it is of.
        assert sorted(position // 5 for _, position in chosen) == list(range(12))
    rows = [
        row for seed in range(50) for row, _ in choose_decisions(mask, None, 12, torch.Generator().manual_seed(seed))
    ]
    assert all(150 < rows.count(row) < 250 for row in range(3))


def test_known_influence_comes_first_and_the_largest_of_it():
    known = torch.zeros(3, 60)
    known[0, 50], known[1, 7], known[2, 8] = 0.1, 0.3, 0.2
    known[0, 3] = float("-inf")
    mask = torch.ones(3, 60, dtype=torch.bool)
    assert {(0, 50), (1, 7), (2, 8)} <= {*choose_decisions(mask, known, 10, torch.Generator())}
    assert choose_decisions(mask, known, 2, torch.Generator()) == [(1, 7), (2, 8)]


def test_unsure_decisions_get_half_of_all_continuations_on_top():
    assert share_continuations([0.0, 2.0, SURE, 0.0, 0.7, 0.0], 16) == [8, 32, 8, 8, 32, 8]


@pytest.mark.parametrize("entropies", [[0.0] * 5, [1.0] * 5])
def test_all_decisions_are_drawn_alike_where_the_policy_is_sure_of_all_or_of_none(entropies):
    assert share_continuations(entropies, 16) == [16] * 5


@pytest.mark.parametrize("num", [4, 5, 16, 33])
def test_continuations_stay_within_what_there_is_and_within_four_times_the_mean(num):
    for num_unsure in range(41):
        numbers = share_continuations([1.0] * num_unsure + [0.0] * (40 - num_unsure), num)
        assert sum(numbers) <= 40 * num
        assert min(numbers) >= max(4, num // 2)
        assert max(numbers) <= 4 * num
