import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import select_branch_points


def naive(scores, preferred, candidates, group, budget, scope, fallback, repeat, min_distance=1, penalty=0.0):
    """The rules as lists: prompts in order of appearance, preferred by score, then the others, then from the start."""
    chosen = []
    for key in dict.fromkeys(group.tolist()):
        rows = [row for row in range(len(group)) if group[row] == key]
        bests = []
        for part in [rows] if scope == "per_prompt" else [[row] for row in rows]:
            points = [(row, t) for row in part for t in range(scores.shape[1]) if candidates[row, t]]
            points = [point for point in points if scores[point] > float("-inf")]
            number = int(budget[part[0]]) if isinstance(budget, torch.Tensor) else budget
            best = []
            while len(best) < number:
                left = [p for p in points if all(p[0] != q[0] or abs(p[1] - q[1]) >= min_distance for q in best)]
                first = [p for p in left if preferred is None or preferred[p]]
                left = first or (left if fallback else [])
                if not left:
                    break
                best.append(max(left, key=lambda p: scores[p].item() - penalty * sum(q[0] == p[0] for q in best)))
            bests.append([best[i % len(best)] for i in range(number)] if repeat and best else best)
        # The best point of each budget, then the second best.
        chosen += [best[i] for i in range(max(map(len, bests))) for best in bests if i < len(best)]
    return chosen


def points_of(chosen):
    return list(zip(chosen.rows.tolist(), chosen.positions.tolist(), strict=True))


SCORES = torch.tensor([[0.0, 5.0, 1.0], [3.0, 4.0, 2.0], [9.0, 8.0, 7.0]])
ALL = torch.ones(3, 3, dtype=torch.bool)
GROUP = torch.tensor([1, 0, 1])


def test_takes_the_best_of_each_prompt_in_order_of_appearance():
    chosen = select_branch_points(SCORES, None, ALL, GROUP, budget=2)
    assert points_of(chosen) == [(2, 0), (2, 1), (1, 1), (1, 0)]
    assert chosen.scores.tolist() == [9.0, 8.0, 4.0, 3.0]


def test_preferred_candidates_come_before_better_scores():
    preferred = torch.zeros_like(ALL)
    preferred[0, 2] = preferred[2, 2] = True
    chosen = select_branch_points(SCORES, preferred, ALL, GROUP, budget=3)
    assert points_of(chosen) == [(2, 2), (0, 2), (2, 0), (1, 1), (1, 0), (1, 2)]


def test_without_fallback_only_preferred_candidates_are_taken():
    preferred = torch.zeros_like(ALL)
    preferred[0, 2] = True
    chosen = select_branch_points(SCORES, preferred, ALL, GROUP, budget=3, fallback=False)
    assert points_of(chosen) == [(0, 2)]


def test_a_budget_of_each_trajectory_keeps_prompts_together():
    chosen = select_branch_points(SCORES, None, ALL, GROUP, budget=1, scope="per_trajectory")
    assert points_of(chosen) == [(0, 1), (2, 0), (1, 1)]


def test_equal_scores_come_by_row_then_position():
    chosen = select_branch_points(torch.zeros(3, 3), None, ALL, torch.zeros(3, dtype=torch.int64), budget=4)
    assert points_of(chosen) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_shortage_returns_what_there_is_or_repeats_it():
    candidates = torch.zeros_like(ALL)
    candidates[1, :2] = True
    assert points_of(select_branch_points(SCORES, None, candidates, GROUP, budget=5)) == [(1, 1), (1, 0)]
    repeated = select_branch_points(SCORES, None, candidates, GROUP, budget=5, repeat=True)
    assert points_of(repeated) == [(1, 1), (1, 0), (1, 1), (1, 0), (1, 1)]


def test_infinitely_bad_and_undefined_scores_are_never_chosen():
    scores = torch.tensor([[float("-inf"), float("nan"), -3.0]])
    chosen = select_branch_points(scores, None, ALL[:1], GROUP[:1], budget=3, repeat=False)
    assert points_of(chosen) == [(0, 2)]


@pytest.mark.parametrize("repeat", [False, True])
def test_no_candidates_or_no_budget_choose_nothing(repeat):
    for candidates, budget in ((~ALL, 2), (ALL, 0)):
        assert points_of(select_branch_points(SCORES, None, candidates, GROUP, budget=budget, repeat=repeat)) == []


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="budget must not be negative, got -1"):
        select_branch_points(SCORES, None, ALL, GROUP, budget=-1)
    with pytest.raises(ValueError, match="scope must be per_prompt or per_trajectory, got 'all'"):
        select_branch_points(SCORES, None, ALL, GROUP, budget=1, scope="all")


def test_points_of_a_row_lie_apart_and_take_turns_with_other_rows():
    scores = torch.tensor([[5.0, 4.9, 4.8, 4.7], [4.0, 1.0, 1.0, 1.0]])
    every, group = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    apart = select_branch_points(scores, None, every, group, budget=3, min_distance=3)
    assert points_of(apart) == [(0, 0), (0, 3), (1, 0)]
    in_turn = select_branch_points(scores, None, every, group, budget=3, penalty=2.0)
    assert points_of(in_turn) == [(0, 0), (1, 0), (0, 1)]
    torch.testing.assert_close(in_turn.scores, torch.tensor([5.0, 4.0, 4.9]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.data())
def test_equals_the_rules_written_as_lists(seed, data):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (6, 4), generator=generator).float()  # few values, so that many are equal
    scores[torch.rand(6, 4, generator=generator) < 0.1] = float("-inf")
    preferred = (torch.rand(6, 4, generator=generator) < 0.4) if data.draw(st.booleans()) else None
    candidates = torch.rand(6, 4, generator=generator) < 0.6
    group = torch.randint(0, 3, (6,), generator=generator)
    by_group = torch.randint(0, 6, (3,), generator=generator)[group]
    options = {
        "budget": data.draw(st.one_of(st.integers(0, 9), st.just(by_group))),
        "scope": data.draw(st.sampled_from(["per_prompt", "per_trajectory"])),
        "fallback": data.draw(st.booleans()),
        "repeat": data.draw(st.booleans()),
        "min_distance": data.draw(st.integers(1, 3)),
        "penalty": data.draw(st.sampled_from([0.0, 0.5, 1.0])),
    }
    chosen = select_branch_points(scores, preferred, candidates, group, **options)
    assert points_of(chosen) == naive(scores, preferred, candidates, group, **options)
    torch.testing.assert_close(chosen.scores, scores[chosen.rows, chosen.positions])
    # One prompt's smaller budget takes the first points of a larger one.
    one = torch.zeros_like(group)
    options["budget"] = 2
    fewer = points_of(select_branch_points(scores, preferred, candidates, one, **options))
    options["budget"] = 3
    more = points_of(select_branch_points(scores, preferred, candidates, one, **options))
    assert more[: len(fewer)] == fewer
