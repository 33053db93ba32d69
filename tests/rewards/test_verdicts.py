"""Verdicts on answers: the labelled pairs of the benchmark, kinds of them, and answers written to take long."""

from __future__ import annotations

import time

import pytest

from appo.rewards import AnswerReward, ExactMatchReward
from appo.rewards.verdicts import MAX_LENGTH, agreement, is_mathematics, verdict
from benchmarks.verdicts import read_pairs
from tests.rewards.responses import boxed

PAIRS = read_pairs()


def test_the_set_is_of_four_hundred_pairs_half_of_them_right():
    assert len(PAIRS) == 400
    assert sum(pair.right for pair in PAIRS) == 200
    assert len({(pair.accepted, pair.answer) for pair in PAIRS}) == 400


@pytest.mark.parametrize("reward", [AnswerReward(), ExactMatchReward()], ids=lambda reward: type(reward).__name__)
def test_no_wrong_answer_of_the_set_is_accepted_and_hardly_a_right_one_refused(reward):
    verdicts = [(pair, reward(boxed(pair.answer, pair.accepted)).parts["accuracy"] == 1.0) for pair in PAIRS]
    assert [pair for pair, accepted in verdicts if accepted and not pair.right] == []
    assert sum(pair.right and not accepted for pair, accepted in verdicts) <= 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac 59", "5/9"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"5.4 \text{ cents}", "5.4"),
        (r"\angle E = 135^\circ", "135°"),
        (r"x<-1 \text{ or } x>1", r"(-\infty,-1)\cup(1,\infty)"),
        (r"\{x \mid x > 2\}", "x>2"),
        ("]0,1[", "(0,1)"),
        (r"3 \pm 2 \sqrt{2}", r"3-2\sqrt{2}, 3+2\sqrt2"),
        (r"\sin x \cos x", r"\cos x\sin x"),
        ("(x-1)(x+1)", "x^2-1"),
        (r"11,\! 111,\! 100", "11111100"),
        ("2 hours 30 minutes", "150 minutes"),
        ("25 mph", "25 miles per hour"),
        ("three centuries", "300 years"),
        ("twenty-one", "21"),
        ("44 BC", "44 BCE"),
        ("world war ii", "World War 2"),
        ("the first", "1st"),
        ("126,129,134", "126, 129, 134"),
        ("Fanfare For A Death Scene", "fanfare for a death scene"),
        ("A. A. Milne", "A.A. Milne"),
        (r"5\sqrt{2} \text{ cm}", r"5\sqrt2"),
        ("\N{ARABIC-INDIC DIGIT THREE}", "3"),
        ("(C)", "C"),
    ],
)
def test_spellings_of_one_answer_are_right(one, other):
    assert verdict(one, other)
    assert verdict(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2n  4", "2n - 4"),
        ("10^{20}+1", "10^{20}"),
        ("101!-1", "101!"),
        ("2310_4", "2310"),
        ("0.333", "1/3"),
        (r"0.\overline{27}", r"0.\overline{3}"),
        ("2k", "2"),
        ("5 mW", "5 MW"),
        ("3rd", "3"),
        ("1970s", "1970"),
        ("44 BC", "44 AD"),
        ("0.5%", "0.5"),
        ("Grade A+", "Grade A-"),
        ("-abc", "abc"),
        ("CO", "Co"),
        (r"Fe^{2+}", r"Fe^{3+}"),
        (r"x>5 \text{ or } x<2", r"x>5 \text{ and } x<2"),
        ("(1,2)", "1,2"),
        (r"-m \in (0,1)", r"m \in (0,1)"),
        (r"\frac{1}{0}", "3"),
        ("Malcolm X", "Malcolm"),
        ("F-16", "F-15"),
        ("Vitamin B12", "Vitamin B6"),
        ("NaCl2", "NaCl"),
        ("x'", "x"),
        ("", "3"),
        ("(A) and (B)", "A"),
        ("A) B)", "B"),
        ("(C) Oslo (A)", "C"),
    ],
)
def test_answers_that_differ_are_not_right(one, other):
    assert not verdict(one, other)
    assert not verdict(other, one)


@pytest.mark.parametrize(
    ("text", "is_so"), [(r"\sin\pi", True), ("5 km", True), (r"\text{east}", False), ("JFK", False)]
)
def test_an_answer_without_a_word_of_three_letters_is_mathematics(text, is_so):
    assert is_mathematics(text) == is_so


def test_a_wrong_answer_shares_nothing_with_mathematics_and_words_with_text():
    assert agreement("(3, 5)", ["(3, 4)"]) == (False, 0.0)
    # 2 of 3 words and 2 of 2: 2 * (2/3 * 1) / (2/3 + 1) = 0.8
    assert agreement("New York City", ["New York", "(3, 5)"]) == (False, pytest.approx(0.8))


def test_what_is_not_understood_is_asked_for():
    asked = []
    integral = r"\int_0^1 x dx"
    assert verdict(r"\oint f", integral) is None
    assert agreement(r"\oint f", [integral], lambda *pair: not asked.append(pair)) == (True, 1.0)
    assert asked == [(r"\oint f", integral)]


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "{",
        "-",
        "1 ",
        "1,",
        "x^",
        r"\frac{",
        "|",
        "!",
        "a,",
        " and a",
        r"\text{",
        "9^",
        "5 km ",
        "x!",
        r"\pm x",
        "½",
    ],
)
@pytest.mark.parametrize("count", [100, 400, 100_000])
def test_no_answer_takes_long(piece, count):
    begin = time.process_time()
    assert not AnswerReward()(boxed(piece * count, ["3 km"])).parts["accuracy"]
    assert not verdict(piece * count + "1", piece * count + "2")
    assert time.process_time() - begin < 2.0


def test_beyond_the_limit_equal_spelling_alone_is_right():
    assert verdict("1" * MAX_LENGTH + "1", "1" * MAX_LENGTH + "1")
    assert not verdict("1" * MAX_LENGTH + "1", "1" * MAX_LENGTH + "1.0")


def test_math_verify_decides_what_is_not_understood():
    pytest.importorskip("math_verify", reason="needs the extra appo[math]")
    response = boxed(r"\int_0^1 2x\,dx", ["1"])
    reward = AnswerReward(math_verify=True)
    assert reward.max_parallel == 2
    reward.start()
    try:
        assert reward(boxed(r"\frac{d}{dx} x^2 |_{x=1}", ["-7"])).reward == 0.0
        assert reward(boxed("0.50", ["1/2"])).reward == 1.0
        asked = reward(response).parts["accuracy"]
    finally:
        reward.stop()
    assert AnswerReward()(response).parts["accuracy"] == 0.0
    assert asked == 1.0
