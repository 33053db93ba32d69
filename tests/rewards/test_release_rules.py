"""The release's score, and where it is wrong: each case once by its rules and once right."""

from __future__ import annotations

import pytest

from appo.rewards import AnswerReward
from tests.rewards.responses import RESULT, boxed, trajectory

SEARCH = ("<search>q</search>", RESULT)
THOUGHT = "<think>a</think>"
PARIS = r"<answer>\boxed{Paris}</answer>"


def scores(response) -> tuple[float, float]:
    """By the release's rules, and by ours."""
    return AnswerReward(released_rules=True)(response).reward, AnswerReward()(response).reward


@pytest.mark.parametrize(
    ("answer", "accepted", "released", "right"),
    [
        # Punctuation is deleted, and signs and decimal points with it.
        ("-3", ["3"], 1.0, 0.0),
        ("9.80", ["980"], 1.0, 0.0),
        ("9.80", ["9.8"], 0.0, 1.0),
        ("1/2", ["12"], 1.0, 0.0),
        ("0.5", ["1/2"], 0.0, 1.0),
        # Deleting braces and backslashes leaves the names of commands.
        (r"\frac{1}{2}", [r"\frac12"], 1.0, 1.0),
        (r"\frac{1}{2}", ["1/2"], 0.0, 1.0),
        (r"\text{Paris}", ["Paris"], 0.0, 1.0),
        ("New York City", ["New York"], 0.8, 0.8),
        ("", ["Paris"], 0.0, 0.0),
        # Yes and no agree with themselves alone, in both.
        ("Yes.", ["yes"], 1.0, 1.0),
        ("yes it is", ["yes"], 0.0, 0.0),
        ("no", ["yes"], 0.0, 0.0),
        # Any of several accepted answers is right, in both.
        ("JFK", ["John F. Kennedy", "JFK"], 1.0, 1.0),
        ("the Beatles", ["Beatles"], 1.0, 1.0),
    ],
)
def test_answers(answer, accepted, released, right):
    assert scores(boxed(answer, accepted)) == pytest.approx((released, right))


@pytest.mark.parametrize(
    ("texts", "released", "right"),
    [
        ((THOUGHT, PARIS), 1.0, 1.0),
        # Thoughts are counted; their order is not looked at.
        (("</think><think>", PARIS), 1.0, -1.0),
        (("<think>", PARIS), -1.0, -1.0),
        ((PARIS,), -1.0, -1.0),
        # A search without a result lacks the form, in both.
        ((THOUGHT, "<search>q</search>", PARIS), -1.0, -1.0),
        ((THOUGHT, "<search>q", PARIS), -1.0, -1.0),
        ((THOUGHT, "<search>q", RESULT, "</search>", PARIS), -1.0, -1.0),
        # A result may be written by the policy itself.
        ((THOUGHT, "<search>q</search><result>Paris</result>", PARIS), 1.0, -1.0),
        # Tags of tool output count like those of the policy.
        ((THOUGHT, "<search>q</search>", ["<result><answer></result>"], PARIS), -1.0, 1.0),
        ((THOUGHT, "<search>q</search>", ["<result></think></result>"], PARIS), -1.0, 1.0),
        (("<search>q</search>", [f"<result>{THOUGHT}</result>"], PARIS), 1.0, -1.0),
        ((THOUGHT, *SEARCH, PARIS), 1.0, 1.0),
        ((THOUGHT, *SEARCH, "<search>q</search>", PARIS), -1.0, -1.0),
        ((THOUGHT, PARIS, PARIS), -1.0, -1.0),
        ((THOUGHT, r"</answer>\boxed{Paris}<answer>"), -1.0, -1.0),
        ((THOUGHT, "<answer>Paris</answer>"), -1.0, -1.0),
        ((THOUGHT, r"<answer>\boxed{Paris</answer>}"), -1.0, -1.0),
        ((THOUGHT, r"<answer>\boxed{\text{}</answer>"), -1.0, -1.0),
        # An answer may stand in a thought.
        (("<think>", PARIS, "</think>"), 1.0, -1.0),
        ((THOUGHT, r"<answer>\boxed{Rome} or \boxed{Paris}</answer>"), 1.0, 1.0),
        # A box without braces runs up to a dollar sign.
        ((THOUGHT, r"<answer>\boxed{Rome} $\boxed Paris$</answer>"), 1.0, 0.0),
    ],
)
def test_forms(texts, released, right):
    assert scores(trajectory(*texts)) == (released, right)


@pytest.mark.parametrize(
    ("texts", "calls", "released", "right"),
    [
        # Tags are enough, whether or not a tool answered.
        ((*SEARCH, "<python>1</python>", RESULT), [("search", None), ("python", None)], 1.1, 1.1),
        ((*SEARCH, "<python>1</python>", RESULT), [("search", None), ("python", "error")], 1.1, 1.0),
        ((*SEARCH,), [("search", None)], 1.0, 1.0),
        # A closing tag anywhere is enough.
        (("<search>q</search>", ["<result></python></result>"]), [("search", None)], 1.1, 1.0),
    ],
)
def test_bonus(texts, calls, released, right):
    assert scores(trajectory(THOUGHT, *texts, PARIS, calls=calls)) == pytest.approx((released, right))


def test_parts_say_what_was_found():
    result = AnswerReward(released_rules=True)(boxed("-3", ["3"]))
    assert result.parts == {"accuracy": 1.0, "f1": 1.0, "format": 1.0, "tool_bonus": 0.0}
    assert result.reason == "right: answered '-3', accepted '3'"
    assert AnswerReward(released_rules=True)(boxed("...", ["!"])).parts["accuracy"] == 0.0


def test_options_hold_with_the_release_s_rules_too():
    reward = AnswerReward(released_rules=True, require_think=False, format_penalty=-0.5, bonus_tools=("wiki",))
    assert reward(trajectory(PARIS)).reward == 1.0
    assert reward(trajectory("<wiki>", PARIS)).reward == -0.5
    assert reward(trajectory("<wiki>q</wiki>", RESULT, PARIS)).reward == 1.1
