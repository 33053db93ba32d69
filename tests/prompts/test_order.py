import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from appo.core.seeding import derive_seed
from appo.prompts import PromptStream


def stream(sizes, per_iteration, weights=None, seed=0):
    """A stream over parts of the given sizes; a question is named after its part and number."""
    parts = [part for part, size in sizes.items() for _ in range(size)]
    ids = [f"{part}{number}" for number, part in enumerate(parts)]
    return PromptStream(ids, parts, weights or dict.fromkeys(sizes, 1.0), per_iteration, seed)


def test_iterations_are_slices_of_seeded_permutations():
    drawn = stream({"": 10}, 4, seed=3)
    for number in range(4):
        # 10 questions make two iterations of 4; the other two are left out.
        generator = torch.Generator().manual_seed(derive_seed(3, "prompts", number // 2))
        order = torch.randperm(10, generator=generator).tolist()
        assert drawn.draw(number) == order[4 * (number % 2) : 4 * (number % 2) + 4]


@given(
    sizes=st.lists(st.integers(8, 30), min_size=1, max_size=4),
    per_iteration=st.integers(1, 6),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_shares_follow_the_weights_and_no_question_occurs_twice(sizes, per_iteration, seed, data):
    weights = {str(i): data.draw(st.floats(0.1, 10.0)) for i in range(len(sizes))}
    named = dict(zip(weights, sizes, strict=True))
    drawn = stream(named, per_iteration, weights, seed)
    parts = [part for part, size in named.items() for _ in range(size)]
    counts = Counter()
    for number in range(30):
        numbers = drawn.draw(number)
        assert len(set(numbers)) == len(numbers) == per_iteration
        counts.update(parts[i] for i in numbers)
        total = (number + 1) * per_iteration
        for part, weight in weights.items():
            # Within a question of its share, or a little more where there are many parts.
            assert abs(counts[part] - total * weight / sum(weights.values())) < len(sizes)


def test_shares_by_hand():
    drawn = stream({"a": 30, "b": 30}, 4, {"a": 3.0, "b": 1.0})
    for number in range(5):
        assert Counter(i < 30 for i in drawn.draw(number)) == {True: 3, False: 1}


def test_every_question_of_a_part_is_drawn_in_a_pass_over_it():
    drawn = stream({"a": 12, "b": 4}, 4, {"a": 3.0, "b": 1.0})
    assert sorted(i for number in range(4) for i in drawn.draw(number)) == list(range(16))


def test_parts_take_turns_within_an_iteration():
    drawn = stream({"a": 30, "b": 30}, 6)
    assert [i < 30 for i in drawn.draw(0)] == [True, False] * 3


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}])
def test_replacements_hold_the_weights_however_many_are_taken(weights):
    drawn = stream({"a": 930, "b": 70}, 16, weights)
    share = weights["a"] / sum(weights.values())
    first, nearest = Counter(), Counter()
    for number in range(100):
        taken = list(drawn.replacements(number))
        assert len(taken) == len({*taken} - {*drawn.draw(number)}) > 60
        first[taken[0] < 930] += 1
        nearest.update(i < 930 for i in taken)
    # Of one a hundred times and of thousands; three standard deviations of the former are 0.15.
    assert first[True] / first.total() == pytest.approx(share, abs=0.15)
    assert nearest[True] / nearest.total() == pytest.approx(share, abs=0.02)


def test_replacements_of_one_part_are_all_the_others():
    drawn, again = stream({"": 20}, 6), stream({"": 20}, 6)
    taken = [list(drawn.replacements(number)) for number in range(2)]
    assert taken == [list(again.replacements(number)) for number in range(2)]
    for number in range(2):
        assert sorted(taken[number] + drawn.draw(number)) == list(range(20))
    assert taken[0] != sorted(taken[0])


@given(
    per_iteration=st.integers(1, 5),
    num_drawn=st.integers(0, 12),
    is_mixed=st.booleans(),
)
def test_a_resumed_stream_goes_on_exactly(per_iteration, num_drawn, is_mixed):
    sizes, weights = ({"a": 11, "b": 8}, {"a": 2.0, "b": 1.0}) if is_mixed else ({"": 11}, None)
    whole, first, second = (stream(sizes, per_iteration, weights) for _ in range(3))
    for number in range(num_drawn):
        assert first.draw(number) == whole.draw(number)
    # What a checkpoint does to it.
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for number in range(max(num_drawn - 2, 0), num_drawn + 8):
        assert second.draw(number) == whole.draw(number)


def test_iterations_may_be_drawn_ahead_and_again():
    drawn, other = stream({"": 10}, 3), stream({"": 10}, 3)
    ahead = drawn.draw(5)
    assert [drawn.draw(number) for number in range(6)] == [other.draw(number) for number in range(6)]
    assert drawn.draw(5) == ahead


@pytest.mark.parametrize(("before", "after"), [(2, 5), (5, 2), (4, 3)])
def test_another_number_of_prompts_goes_on_where_the_stream_stopped(before, after):
    first = stream({"": 20}, before)
    drawn = [i for number in range(2) for i in first.draw(number)]
    second = stream({"": 20}, after)
    second.load_state_dict(first.state_dict())
    numbers = second.draw(2)
    assert len(numbers) == after
    # All of one pass: nothing is drawn again, nothing is left out.
    generator = torch.Generator().manual_seed(derive_seed(0, "prompts", 0))
    assert drawn + numbers == torch.randperm(20, generator=generator).tolist()[: len(drawn) + after]
    third = stream({"": 20}, after)
    third.load_state_dict(second.state_dict())
    assert [third.draw(number) for number in range(2, 9)] == [second.draw(number) for number in range(2, 9)]


def test_an_iteration_that_was_drawn_with_another_number_is_refused():
    first = stream({"": 20}, 4)
    first.draw(0)
    first.draw(1)
    second = stream({"": 20}, 5)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"prompts_per_iteration .* must stay 4 and .* for iteration 1, .* got 5"):
        second.draw(1)
    # A third number after that: the refusal names what the iteration was drawn with.
    second.draw(2)
    third = stream({"": 20}, 6)
    third.load_state_dict(second.state_dict())
    assert len(third.draw(3)) == 6
    with pytest.raises(ValueError, match="must stay 5 and"):
        third.draw(2)


def test_other_weights_hold_from_the_next_iteration_on():
    first = stream({"a": 40, "b": 40}, 4, {"a": 3.0, "b": 1.0})
    for number in range(5):
        first.draw(number)
    second = stream({"a": 40, "b": 40}, 4, {"a": 1.0, "b": 1.0})
    second.load_state_dict(first.state_dict())
    seen = {i for number in range(5) for i in first.draw(number)}
    for number in range(5, 8):
        assert Counter(i < 40 for i in second.draw(number)) == {True: 2, False: 2}
        assert not seen & set(second.draw(number))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sizes": {"": 21}}, "data.source must have the 20 training questions of the resumed run, .* got 21;"),
        ({"sizes": {"x": 20}}, "data.source must have the 20 training questions of the resumed run, .* got 20 others"),
        ({"seed": 1}, "data.seed must be that of the resumed run, 0, got 1"),
    ],
)
def test_a_stream_of_other_questions_is_refused(other, message):
    first = stream({"": 20}, 4)
    with pytest.raises(ValueError, match=message):
        stream(**{"sizes": {"": 20}, "per_iteration": 4, **other}).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ({"": 3}, None, "data.prompts_per_iteration must not exceed the number of training questions 3, got 4"),
        (
            {"a": 20, "qa/": 2},
            {"a": 1.0, "qa/": 1.0},
            "training questions 2 of qa, .* up to 3 are drawn at once, got 4",
        ),
        ({"a": 20}, {"a": 1.0, "b": 1.0}, "training questions 0 of b"),
        ({"a": 20}, {"b": 1.0}, "weights must name the part 'a' of a question, got b"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        stream(sizes, 4, weights)
