"""Right or wrong, and where the answer stands."""

from __future__ import annotations

import pytest

from appo.rewards import ExactMatchReward, Grading
from appo.rewards.response_format import final_answer
from tests.rewards.responses import RESULT, boxed, trajectory


@pytest.mark.parametrize(
    ("answer", "accepted", "reward"),
    [
        ("Paris", ["Paris"], 1.0),
        (r"\text{paris.}", ["Paris"], 1.0),
        ("JFK", ["John F. Kennedy", "JFK"], 1.0),
        ("New York City", ["New York"], 0.0),
        ("-3", ["3"], 0.0),
        ("9.80", ["980"], 0.0),
        ("9.80", ["9.8"], 1.0),
        ("0.5", [r"\frac{1}{2}"], 1.0),
        ("-1/4", ["-0.25"], 1.0),
        ("2/4", ["1/2"], 1.0),
        ("0.333", ["1/3"], 0.0),
        ("1/0", ["2/0"], 0.0),
        ("yes", ["Yes"], 1.0),
        ("yes", ["no"], 0.0),
        ("yes it is", ["yes"], 0.0),
        ("yes, it is", ["yes"], 1.0),
        ("yes, it is not", ["yes"], 0.0),
        ("Paris", [], 0.0),
        # Beyond what is read as a number: equal strings alone agree.
        ("1" * 5000, ["1" * 5000], 1.0),
        ("1" * 5000, ["1" * 4999 + "2"], 0.0),
    ],
)
def test_an_answer_is_right_or_wrong(answer, accepted, reward):
    result = ExactMatchReward()(boxed(answer, accepted))
    assert (result.reward, result.parts["accuracy"]) == (reward, reward)


SCALE = Grading(right=1.0, right_malformed=0.8, wrong=0.2, wrong_malformed=0.1, no_answer=-1.0)


@pytest.mark.parametrize(
    ("text", "reward", "parts"),
    [
        (r"<think>a</think><answer>\boxed{Paris}</answer>", 1.0, (1.0, 1.0, 1.0)),
        (r"The answer is \boxed{Paris}.", 0.8, (1.0, 0.0, 1.0)),
        (r"<think>a</think><answer>\boxed{Rome}</answer>", 0.2, (0.0, 1.0, 1.0)),
        (r"The answer is \boxed{Rome}.", 0.1, (0.0, 0.0, 1.0)),
        ("The answer is Paris.", -1.0, (0.0, 0.0, 0.0)),
        (r"<think>a</think><answer>\boxed{}</answer>", -1.0, (0.0, 1.0, 0.0)),
    ],
)
def test_form_and_rightness_earn_what_the_scale_says(text, reward, parts):
    result = ExactMatchReward(SCALE)(trajectory(text))
    assert result.reward == reward
    assert {name: result.parts[name] for name in ("accuracy", "format", "answered")} == dict(
        zip(("accuracy", "format", "answered"), parts, strict=True)
    )
    assert result.parts["exact_match"] == result.parts["accuracy"]


def test_reason_says_what_was_answered_and_what_is_wrong_with_the_form():
    assert ExactMatchReward()(trajectory(r"\boxed{Rome}", answers=["Paris", "Lutetia"])).reason == (
        "wrong: answered 'Rome', accepted 'Paris' or 'Lutetia'; "
        "bad format: there must be a thought in <think>...</think>"
    )


def test_form_of_every_tool_that_was_called_is_checked():
    text = r"<think>a</think><wiki>q</wiki><answer>\boxed{Paris}</answer>"
    assert ExactMatchReward()(trajectory(text)).parts["format"] == 1.0
    assert ExactMatchReward()(trajectory(text, calls=[("wiki", None)])).parts["format"] == 0.0
    assert ExactMatchReward(Grading(tools=("wiki",)))(trajectory(text)).parts["format"] == 0.0


@pytest.mark.parametrize(
    ("place", "texts", "answer"),
    [
        ("box", (r"\boxed{a} and \boxed{b}",), "b"),
        ("box", (r"<think>\boxed{a}</think> b",), "a"),
        ("box", ("b",), None),
        # Tool output neither gives an answer nor completes one.
        ("box", (r"\boxed{a}", [r"\boxed{b}"]), "a"),
        ("box", ([r"\boxed{b}"], "c"), None),
        ("box", (r"\boxed{a", ["b"], "c}"), None),
        ("answer", ("<answer>a</answer><answer> b </answer>",), "b"),
        ("answer", (r"<answer>It is \boxed{b}.</answer> \boxed{c}",), "b"),
        ("answer", (r"\boxed{b}",), None),
        ("answer", ("<answer>b",), None),
        ("answer", ("b</answer>",), None),
        ("answer", (["<answer>b</answer>"], "c"), None),
        ("answer", ("<answer>a", ["b"], "</answer>"), None),
        ("response", ("<think>a</think> b ",), "b"),
        ("response", ("a", ["b"], " c "), "c"),
        ("response", ("a", ["b"]), ""),
        ("response", ("<think>a</think>b<think>c",), "b"),
    ],
)
def test_answer_is_taken_from_its_place(place, texts, answer):
    assert final_answer(trajectory(*texts).segments, place) == answer


def test_the_policy_cannot_write_the_mark_of_tool_output():
    assert final_answer(trajectory("a\x00b").segments, "response") == "ab"


def test_place_is_an_option():
    response = trajectory("<search>q</search>", RESULT, "It is", RESULT, "Paris")
    assert ExactMatchReward(Grading("response"))(response).reward == 1.0
    assert ExactMatchReward()(response).reward == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer_from": "end"}, "answer_from must be box, answer or response, got 'end'"),
        ({"wrong_malformed": float("nan")}, "wrong_malformed must be finite, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Grading(**options)


def test_a_wrong_answer_tells_how_many_words_it_shares():
    result = ExactMatchReward()(trajectory(r"\boxed{New York City}", answers=["Rome", "New York"]))
    # Two of three words are right, and both of the two wanted: 2 * 2 / (3 + 2) = 0.8, whatever the form.
    assert (result.reward, result.parts["exact_match"], result.parts["f1"]) == (0.0, 0.0, pytest.approx(0.8))
