"""What functions of the user's judge answers with."""

import pytest

from appo.rewards import final_answer, same_answer
from appo.rewards.final import answer_groups
from tests.rewards.responses import boxed, trajectory


def test_the_final_answer_is_found_in_a_trajectory_and_in_text():
    assert final_answer(boxed("7")) == final_answer(r"so it is \boxed{7}.") == "7"
    assert final_answer(trajectory("I ask", [r" <result>\boxed{9}</result>"])) is None
    assert final_answer("<think>5?</think> 7 ", "response") == "7"
    assert final_answer("<answer>Rome</answer>", "answer") == "Rome"
    assert final_answer("nothing") is None
    assert final_answer(r"\boxed{}") is None
    with pytest.raises(ValueError, match="place must be box, answer or response, got 'end'"):
        final_answer("", "end")


def test_answers_are_the_same_if_the_default_reward_says_so():
    assert same_answer("1/2", "0.5")
    assert not same_answer("-x", "x")
    assert not same_answer(None, "x")


def test_answers_are_grouped_by_what_they_mean():
    answers = ["1/2", None, "-x", "0.5", "x", r"\frac12", "$-x$", "0.5"]
    assert answer_groups(answers) == [0, None, 1, 0, 2, 0, 1, 0]
    assert answer_groups([]) == []
