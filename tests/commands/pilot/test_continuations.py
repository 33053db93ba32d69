from __future__ import annotations

import random

import torch

from appo.commands.pilot.continuations import Continuation, DrawnTokens
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
    leaves, stays, later, short = (
        continuation(root, 2, [5, 9, 7, 8], [True] * 4),  # another way from the second token on
        continuation(root, 2, [5, 6, 7, 3, 4], [True] * 5),  # draws all four
        continuation(root, 4, [7, 8], [True] * 2),  # was given the first two
        continuation(root, 3, [6], [True]),  # ends right before the third
    )
    drawn = DrawnTokens([leaves, stays, later, short])
    expected = {2: [leaves, stays], 3: [leaves, stays, short], 4: [stays, later], 5: [stays, later]}
    assert {position: drawn.of(root, position) for position in expected} == expected


def test_tool_output_is_not_drawn():
    """A continuation that ran out of calls has nothing where the root goes on, or another's words in the way."""
    root = trajectory([5, 6, 7], [True, False, True])
    other = continuation(root, 2, [5, 6, 7], [True, False, True])
    silent = continuation(root, 2, [5, 6, 7], [True, False, False])
    assert DrawnTokens([other, silent]).of(root, 4) == [other]


def test_continuations_of_one_root_draw_tokens_of_another_that_begins_like_it():
    roots = [trajectory([5, 6, 7], [True] * 3), trajectory([5, 6, 8], [True] * 3)]
    of_first, of_second = continuation(roots[0], 3, [6, 9], [True] * 2), continuation(roots[1], 4, [7], [True])
    drawn = DrawnTokens([of_first, of_second])
    assert [drawn.of(root, 4) for root in roots] == [[of_first, of_second]] * 2


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
                if begin <= position < len(each.trajectory)
                and each.trajectory.token_ids[:position].tolist() == root.token_ids[:position].tolist()
            ]
            assert drawn.of(root, position) == expected
            assert len(expected) > 0
