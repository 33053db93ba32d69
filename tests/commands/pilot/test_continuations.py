from __future__ import annotations

import random

import torch

from appo.commands.pilot.continuations import NOTHING, Continuation, DrawnTokens
from appo.core.trajectory import BranchPoint, Prompt, RewardResult, Trajectory

PROMPT = Prompt("a", "", (1, 2), ())


def trajectory(tokens: list[int], is_sampled: list[bool], origin: BranchPoint | None = None) -> Trajectory:
    """One of the prompt, then of some tokens."""
    token_ids = torch.tensor([*PROMPT.token_ids, *tokens])
    mask = torch.tensor([False, False, *is_sampled])
    nothing = torch.zeros(len(token_ids))
    return Trajectory(PROMPT, token_ids, mask, nothing, nothing.long(), (), (), "eos", origin)


def continuation(root: Trajectory, position: int, tokens: list[int], is_sampled: list[bool], half=0) -> Continuation:
    """A branch that draws the token of a position anew; what it draws goes on from there."""
    first = position - len(PROMPT.token_ids)
    shared = root.token_ids[len(PROMPT.token_ids) : position].tolist()
    kept = root.response_mask[len(PROMPT.token_ids) : position].tolist()
    assert len(shared) == first
    origin = BranchPoint(root, position - 1, 0.0)
    return Continuation(trajectory([*shared, *tokens], [*kept, *is_sampled], origin), RewardResult(0.0), half)


def test_a_continuation_draws_what_it_comes_upon():
    root = trajectory([5, 6, 7, 8], [True] * 4)
    leaves, stays, later = (
        continuation(root, 2, [5, 9, 7, 8], [True] * 4),  # another way from the second token on
        continuation(root, 2, [5, 6, 7, 3, 4], [True] * 5),  # draws all four
        continuation(root, 4, [7, 8], [True] * 2),  # was given the first two
    )
    drawn = DrawnTokens([leaves, stays, later])
    expected = {
        2: ([5, 5], [leaves, stays]),
        3: ([9, 6], [leaves, stays]),
        4: ([7, 7], [stays, later]),
        5: ([3, 8], [stays, later]),
    }
    assert {position: drawn.of(root, position) for position in expected} == expected


def test_what_was_cut_off_counts_as_a_choice_of_its_own():
    """A policy that makes up a result behind a call has the rest of its turn cut off, the token drawn with it."""
    root = trajectory([5, 6, 7], [True] * 3)
    answered = continuation(root, 3, [40, 41], [False] * 2)  # a tool's words stand where it drew a token
    ended = continuation(root, 3, [], [])  # and nothing where calls were used up
    earlier = continuation(root, 2, [5], [True])
    drawn = DrawnTokens([answered, ended, earlier])
    assert drawn.of(root, 3) == ([40, NOTHING, NOTHING], [answered, ended, earlier])
    assert DrawnTokens([ended]).of(root, 3) == ([NOTHING], [ended])


def test_what_a_continuation_was_given_is_not_lost_where_the_cut_lies_before_its_begin():
    root = trajectory([5, 6, 7], [True] * 3)
    origin = BranchPoint(root, 3, 0.0)
    cut = Continuation(trajectory([5, 40, 41], [True, False, False], origin), RewardResult(0.0), 0)
    assert DrawnTokens([cut]).of(root, 4) == ([41], [cut])


def test_continuations_of_one_root_draw_tokens_of_another_that_begins_like_it():
    roots = [trajectory([5, 6, 7], [True] * 3), trajectory([5, 6, 8], [True] * 3)]
    of_first, of_second = continuation(roots[0], 3, [6, 9], [True] * 2), continuation(roots[1], 4, [7], [True])
    drawn = DrawnTokens([of_first, of_second])
    assert [drawn.of(root, 4) for root in roots] == [([9, 7], [of_first, of_second])] * 2


def test_many_are_found_by_the_definition():
    rng = random.Random(0)

    def some(num: int) -> tuple[list[int], list[bool]]:
        return rng.choices((5, 6), k=num), [True] * num

    roots = [trajectory(*some(6)) for _ in range(3)]
    places = [(rng.choice(roots), rng.randrange(2, 8)) for _ in range(200)]
    continuations = [continuation(root, position, *some(rng.randrange(1, 9))) for root, position in places]
    drawn = DrawnTokens(continuations)
    for root in roots:
        for position in range(2, 8):
            expected = [
                each
                for each, (_, begin) in zip(continuations, places, strict=True)
                if begin <= position
                and each.trajectory.token_ids[:position].tolist() == root.token_ids[:position].tolist()
            ]
            tokens, draws = drawn.of(root, position)
            assert draws == expected
            assert len(expected) > 0
            assert tokens == [
                int(each.trajectory.token_ids[position]) if position < len(each.trajectory) else NOTHING
                for each in expected
            ]
