"""Rows that share what they begin with: the tree holds each distinct token once, and parts of it stay in a budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from appo.core.buckets import length_buckets
from appo.core.prefix_tree import NO_SEGMENT, NOWHERE, PrefixTree


def tree_of(rows: list[list[int]]) -> PrefixTree:
    token_ids = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)
    return PrefixTree.of(token_ids, torch.tensor([len(row) for row in rows]))


def run(begin: int, length: int) -> list[int]:
    return [*range(begin, begin + length)]


PROMPT, OTHER = run(1000, 40), run(5000, 30)
ROOT = [*PROMPT, *run(0, 60)]
BRANCH = [*ROOT[:70], *run(200, 25)]
BRANCH_OF_BRANCH = [*BRANCH[:90], *run(300, 20)]
ROOTS = [ROOT, [*PROMPT, *run(100, 50)]]


def shapes(tree: PrefixTree) -> list[tuple[int, int, int]]:
    return [(segment.begin, segment.end, segment.parent) for segment in tree.segments]


def test_roots_branches_and_their_branches_share_what_they_share():
    tree = tree_of([BRANCH_OF_BRANCH, *ROOTS, BRANCH, OTHER])
    # In the order of the tokens: what all share, the root up to its branch, the rest of it, ...
    assert shapes(tree) == [
        (0, 40, -1), (40, 70, 0), (70, 100, 1), (70, 90, 1), (90, 95, 3), (90, 110, 3), (40, 90, 0), (0, 30, -1),
    ]  # fmt: skip
    assert tree.last_segments == [5, 2, 6, 4, 7]
    assert [segment.stop for segment in tree.segments] == [195, 145, 100, 145, 125, 145, 195, 225]
    assert (tree.num_tokens, tree.num_row_tokens, tree.is_shared) == (225, 110 + 100 + 90 + 95 + 30, True)
    assert tree.num_pairs == 40 * 40 + 30 * 70 + 30 * 100 + 20 * 90 + 5 * 95 + 20 * 110 + 50 * 90 + 30 * 30


def test_a_resampled_token_is_not_shared_though_the_branch_says_that_it_left_there():
    shared = tree_of([ROOT, [*ROOT[:69], 7777, *run(200, 25)]])
    assert shapes(shared)[0] == (0, 69, NO_SEGMENT)


@pytest.mark.parametrize(("num_shared", "is_shared"), [(15, False), (16, True)])
def test_a_few_tokens_are_not_worth_a_segment(num_shared, is_shared):
    tree = tree_of([[*run(0, num_shared), *run(100, 20)], [*run(0, num_shared), *run(200, 20)]])
    assert tree.is_shared == is_shared
    assert len(tree.segments) == (3 if is_shared else 2)


def test_a_prefix_that_is_short_beside_its_rows_is_not_worth_its_calls():
    assert not tree_of([[*run(0, 20), *run(1000 * i, 900)] for i in range(1, 3)]).is_shared
    assert tree_of([[*run(0, 20), *run(1000 * i, 300)] for i in range(1, 3)]).is_shared


def test_a_row_that_is_a_part_of_another_or_equal_to_it_adds_nothing():
    tree = tree_of([ROOT, ROOT, ROOT[:50], []])
    assert shapes(tree) == [(0, 50, NO_SEGMENT), (50, 100, 0)]
    assert tree.last_segments == [1, 1, 0, NO_SEGMENT]
    assert tree.places[3].eq(NOWHERE).all()


rows_of_a_trie = st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(choices=rows_of_a_trie, length=st.integers(14, 20), max_tokens=st.integers(1, 400))
def test_every_token_stands_where_all_that_it_follows_stands_before_it(choices, length, max_tokens):
    # Each choice appends one of two runs of tokens: rows of depth four at most, with twins and parts of others.
    rows = [[token for depth, c in enumerate(row) for token in run(1000 * depth + 100 * c, length)] for row in choices]
    tree = tree_of(rows)
    token_ids = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)
    if tree.segments:
        packed = token_ids[tree.rows_and_positions]
        assert len(packed) == tree.num_tokens == len(tree.places.unique()) - int((tree.places == NOWHERE).any())
    for row, tokens in enumerate(rows):
        places = tree.places[row, : len(tokens)]
        seen = tree.lineage(tree.last_segments[row])
        assert [p for s in seen for p in range(s.first, s.first + len(s))] == places.tolist()
        if tokens:
            assert packed[places].tolist() == tokens
            assert tree.rows_and_positions[1][places].tolist() == [*range(len(tokens))]
            assert all(s.first <= places[-1] < s.stop for s in seen)
    buckets = tree.buckets(max_tokens)
    assert sorted(row for bucket in buckets for row in bucket) == [*range(len(rows))]
    for bucket in buckets:
        assert len(bucket) == 1 or tree_of([rows[row] for row in bucket]).num_tokens <= max_tokens


def test_what_shares_nothing_is_cut_as_rows_of_similar_length_are():
    lengths = [30, 75, 12, 75, 40, 9]
    tree = tree_of([run(1000 * i, length) for i, length in enumerate(lengths)])
    assert tree.buckets(90) == [bucket.tolist() for bucket in length_buckets(torch.tensor(lengths), 90)]


def test_trees_stay_whole_where_they_fit_and_are_cut_at_the_fork_nearest_to_the_root_where_not():
    roots = [[*PROMPT, *run(100 * i, 60)] for i in range(4)]
    branches = [[*root[:70], *run(1000 * (i + 10), 30)] for i, root in enumerate(roots)]
    rows = [*roots, *branches, OTHER]
    # 40 tokens of the prompt, 90 of each root with its branch.
    assert [sorted(bucket) for bucket in tree_of(rows).buckets(430)] == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert [sorted(bucket) for bucket in tree_of(rows).buckets(400)] == [[0, 1, 2, 3, 4, 5, 6, 7], [8]]
    assert [sorted(bucket) for bucket in tree_of(rows).buckets(399)] == [[0, 1, 2, 4, 5, 6], [3, 7, 8]]


def test_a_budget_must_be_positive():
    with pytest.raises(ValueError, match="max_tokens must be positive, got 0"):
        tree_of([ROOT]).buckets(0)
