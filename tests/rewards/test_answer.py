import pytest

from appo.rewards import REWARDS, AnswerReward
from tests.rewards.responses import ANSWER, RESULT, trajectory


@pytest.mark.parametrize(
    "texts",
    [
        (ANSWER,),
        (f"<think>first</think>{ANSWER}\nDone.",),
        (r"<answer>\boxed{Paris}</answer><think>after</think>",),
        ("<think>a</think><search>q</search>", RESULT, ANSWER),
        ("<think>a<search>q</search>", RESULT, f"</think>{ANSWER}"),
        ("<search>q</search>", RESULT, "<python>1</python>", RESULT, ANSWER),
        # Trailing characters of the last token of the tag.
        ("<search>q</search>\n", RESULT, ANSWER),
        # What stands in a call is the tool's business.
        ("<python>print('<answer></think><result>')</python>", RESULT, ANSWER),
        # A mention of a tool before its call.
        ("<think>I use <search> here.</think><search>q</search>", RESULT, ANSWER),
        # Tool output can neither break the form ...
        ("<search>q</search>", [" <result>\n<answer></think><search>\n</result>"], ANSWER),
        # ... nor does the wrapping of results matter.
        ("<search>q</search>", ["[Paris]"], ANSWER),
    ],
)
def test_right_form(texts):
    result = AnswerReward()(trajectory(*texts))
    assert result.parts["format"] == 1.0, result.reason
    assert result.reward == 1.0


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("",), "there must be a thought"),
        ((r"<answer>\boxed{Paris}</answer>",), "there must be a thought in <think>...</think>"),
        (("<think>a",), "<think> must be closed"),
        ((f"<think>{ANSWER}",), "<think> must not stand within <think>"),
        ((f"</think>{ANSWER}",), "</think> must follow <think>"),
        ((f"</think><think>{ANSWER}",), "</think> must follow <think>"),
        ((r"<think><answer>\boxed{Paris}</answer></think>",), "the answer must stand outside of <think>"),
        (("<think>a</think>Paris",), "there must be one answer, got 0"),
        ((ANSWER, ANSWER), "there must be one answer, got 2"),
        (("<think>a</think><answer>Paris",), "<answer> must be closed before any other tag"),
        (("<think>a</think><answer><answer></answer>",), "<answer> must be closed before any other tag"),
        ((f"{ANSWER}</answer>",), "</answer> must follow <answer>"),
        (("<think>a</think><answer>Paris</answer>",), r"the answer must hold a \boxed{...} whose braces balance"),
        ((r"<think>\boxed{Paris}</think><answer>Paris</answer>",), "the answer must hold a"),
        ((r"<think>a</think><answer>\boxed{Paris</answer>}",), "the answer must hold a"),
        (("<think>a</think><answer>", RESULT, r"\boxed{Paris}</answer>"), "the answer must not hold tool output"),
        ((f"<search>q</search>{ANSWER}",), "a result must follow </search>"),
        ((f"<search>q</search>{ANSWER}", RESULT), "a result must follow </search>"),
        ((f"{ANSWER}<python>1</python>",), "a result must follow </python>"),
        ((f"<search>q{ANSWER}",), "<search> must be closed"),
        (("<search>q", RESULT, f"</search>{ANSWER}"), "<search> must be closed before tool output follows"),
        ((f"</search>{ANSWER}",), "</search> must follow <search>"),
        ((f"<search>q</search> <result>Paris</result>{ANSWER}",), "a result must follow </search>"),
        ((f"<result>Paris</result>{ANSWER}",), "a result must come from a tool"),
        # Tool output cannot fake the form: neither a thought, nor an answer, nor half a tag.
        (([ANSWER],), "there must be a thought"),
        (("<think>a</think>", [r"<answer>\boxed{Paris}</answer>"]), "there must be one answer, got 0"),
        (("<think>a</think><ans", ["x"], r"wer>\boxed{Paris}</answer>"), "</answer> must follow <answer>"),
    ],
)
def test_wrong_form_earns_the_penalty_and_says_why(texts, reason):
    result = AnswerReward(format_penalty=-0.5)(trajectory(*texts))
    assert result.reason.startswith("bad format: ")
    assert reason in result.reason
    assert result.reward == -0.5
    assert result.parts == {"accuracy": 0.0, "f1": 0.0, "format": 0.0, "tool_bonus": 0.0}


def test_policy_cannot_write_the_mark_of_tool_output():
    text = f"<search>q</search>\x00{ANSWER}"
    assert "a result must follow </search>" in AnswerReward()(trajectory(text)).reason


def test_calls_of_other_tools_are_checked_too():
    text = f"<wiki>q</wiki>{ANSWER}"
    assert AnswerReward()(trajectory(text)).reward == 1.0
    assert "a result must follow </wiki>" in AnswerReward()(trajectory(text, calls=[("wiki", None)])).reason


def test_thought_is_not_demanded_if_not_required():
    assert AnswerReward(require_think=False)(trajectory(r"<answer>\boxed{Paris}</answer>")).reward == 1.0


@pytest.mark.parametrize(
    ("boxed", "answers", "f1", "accuracy"),
    [
        ("Paris", ("Paris",), 1.0, 1.0),
        (r"\text{Paris}", ("Paris",), 1.0, 1.0),
        ("Paris", ("London", "paris"), 1.0, 1.0),
        ("New York City", ("New York", "London"), 0.8, 0.0),
        ("York New", ("New York",), 1.0, 0.0),
        ("London", ("Paris",), 0.0, 0.0),
        ("", ("Paris",), 0.0, 0.0),
        ("-3", ("3",), 0.0, 0.0),
        ("9.80", ("9.8",), 1.0, 1.0),
        ("yes", ("no",), 0.0, 0.0),
        (r"\frac{1}{2}", (r"\frac12",), 1.0, 1.0),
    ],
)
def test_reward_is_the_best_f1_over_the_accepted_answers(boxed, answers, f1, accuracy):
    text = f"<think>so</think><answer>It is \\boxed{{{boxed}}}.</answer>"
    result = AnswerReward()(trajectory(text, answers=answers))
    assert result.reward == pytest.approx(f1)
    assert result.parts["f1"] == pytest.approx(f1)
    assert result.parts["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("calls", "answer", "bonus"),
    [
        ([("search", None), ("python", None)], "Paris", 0.25),
        ([("search", None)], "Paris", 0.0),
        ([], "Paris", 0.0),
        ([("search", None), ("python", "error")], "Paris", 0.0),
        ([("search", None), ("python", "error"), ("python", None)], "Paris", 0.25),
        ([("search", None), ("python", None)], "London", 0.0),
    ],
)
def test_bonus_needs_an_answer_of_every_bonus_tool_and_some_truth(calls, answer, bonus):
    result = AnswerReward(multi_tool_bonus=0.25)(trajectory(ANSWER, answers=(answer,), calls=calls))
    assert result.parts["tool_bonus"] == bonus
    assert result.reward == result.parts["f1"] + bonus


def test_no_bonus_tools_means_no_bonus():
    assert AnswerReward(bonus_tools=())(trajectory(ANSWER)).reward == 1.0


def test_reason_names_what_was_answered_and_what_is_accepted():
    assert AnswerReward()(trajectory(ANSWER, answers=("Rome", "Roma"))).reason == (
        "wrong: answered 'Paris', accepted 'Rome' or 'Roma'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format_penalty": float("nan")}, "format_penalty must be finite, got nan"),
        ({"multi_tool_bonus": float("inf")}, "multi_tool_bonus must be finite, got inf"),
        ({"multi_tool_bonus": -0.1}, "multi_tool_bonus must not be negative, got -0.1"),
        ({"bonus_tools": ("",)}, "bonus_tools must hold names that are not empty"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AnswerReward(**options)


def test_reward_is_registered():
    assert REWARDS["AnswerReward"] is AnswerReward


def test_the_answer_is_named_and_a_bad_form_names_none():
    def answer(text: str) -> str | None:
        return AnswerReward()(trajectory(rf"<think>a</think><answer>\boxed{{{text}}}</answer>")).answer

    assert answer(" -x ") == "-x"
    assert answer("") is None
    assert AnswerReward()(trajectory("no answer")).answer is None
