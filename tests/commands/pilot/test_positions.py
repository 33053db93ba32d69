from __future__ import annotations

import torch

from appo.commands.pilot.positions import choose_decisions, depths, parts_of


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
