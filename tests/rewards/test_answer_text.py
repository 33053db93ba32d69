import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appo.rewards.answer_text import agree, last_boxed, normalize_answer, rational, shorten_number, token_f1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("9.80", "9.8"),
        ("1,000", "1000"),
        ("1{,}000", "1000"),
        (r"1\,000", "1000"),
        ("$1,234,567.50", "1234567.5"),
        ("-1,000", "-1000"),
        ("+3", "3"),
        ("-0.0", "0"),
        ("007", "7"),
        (".5", "0.50"),
        ("3.", "3"),
        ("(3)", "3"),
        (r"50\%", "50"),
        ("\N{MINUS SIGN}3", "-3"),
        ("- 3", "-3"),
        ("$-3$", "-3"),
        ("2 + 3", "2+3"),
        ("(3, 4)", "(3,4)"),
        (r"\text{Paris}", "Paris"),
        (r"\mathrm{New} \textbf{York}", "new york"),
        (r"\text{New\ York}", "New York"),
        (r"5\,\text{km}", "5 km"),
        (r"\frac{1}{2}", r"\frac12"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"-\tfrac{1}{2}", "-1/2"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"\frac{\frac{1}{2}}{3}", r"\frac{1/2}3"),
        (r"\left(3\right)", "3"),
        (r"90^\circ", "90"),
        ("x^{2}", "x^2"),
        ("The Beatles", "beatles"),
        ("A.", "a"),
        # Digits in groups of three are one number, others are not.
        ("1,234,56", "1 234 56"),
        ("a  cat,  an owl", "cat owl"),
        ("U.S.", "us"),
        ("O\N{RIGHT SINGLE QUOTATION MARK}Hara", "O'Hara"),
    ],
)
def test_spellings_of_one_answer_are_equal(one, other):
    assert normalize_answer(one) == normalize_answer(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-3", "3"),
        ("9.80", "980"),
        ("0.5", "5"),
        ("1/2", "12"),
        ("1/2", "2/1"),
        ("3-4", "34"),
        ("2 + 3", "2 - 3"),
        ("1.000", "1000"),
        ("100", "1"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        (r"\frac{1+2}{3}", "1+2/3"),
        ("A", "B"),
        ("A", ""),
        ("\N{INFINITY}", "-\N{INFINITY}"),
        # One digit apart, beyond the precision of any float.
        ("1" * 40 + "1", "1" * 40 + "2"),
    ],
)
def test_different_answers_stay_different(one, other):
    assert normalize_answer(one) != normalize_answer(other)
    assert token_f1(normalize_answer(one), normalize_answer(other)) == 0.0


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_grouped_digits_and_trailing_zeros_do_not_change_a_number(number):
    assert normalize_answer(f"{number:,.7f}") == shorten_number(f"{number:f}")
    assert float(normalize_answer(f"{number:,.7f}")) == float(number)


@given(st.text(max_size=40))
def test_normalizing_any_text_loses_it_only_if_it_was_blank(text):
    assert bool(normalize_answer(text).strip()) or not normalize_answer(text)
    assert token_f1(normalize_answer(text), normalize_answer(text)) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{3}", "3"),
        (r"so \boxed{ x } and \boxed{y}.", "y"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed {4}", "4"),
        (r"\fbox{5}", "5"),
        (r"\boxed{a} \boxed{b", "a"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{}", ""),
        (r"\boxed{a \boxed{b}", "b"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"} \boxed{a} }", "a"),
        (r"{ \boxed{a}", "a"),
        (r"\boxed{ { }", None),
        # A backslash too many, as in escaped text.
        (r"\\boxed{a}", "a"),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{3", None),
        (r"\boxed 3", None),
        ("3", None),
    ],
)
def test_last_box_with_balanced_braces_is_taken(text, content):
    assert last_boxed(text) == content


def test_many_boxes_that_do_not_close_take_no_time():
    begin = time.perf_counter()
    assert last_boxed(r"\boxed{" * 50_000) is None
    assert time.perf_counter() - begin < 5.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", Fraction(3)),
        ("-3.50", Fraction(-7, 2)),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-1.5/3", Fraction(-1, 2)),
        ("(-1)/(2)", Fraction(-1, 2)),
        ("1/0", None),
        ("1/2/3", None),
        ("", None),
        (".", None),
        ("x", None),
        ("3 km", None),
        ("1" * 65, None),
        ("\N{ARABIC-INDIC DIGIT THREE}", None),
    ],
)
def test_numbers_and_fractions_have_a_value(text, value):
    assert rational(text) == value


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [("a", "a", True), ("", "", False), ("1/2", "0.5", True), ("1/3", "0.333", False), ("-1/2", "1/2", False)],
)
def test_answers_agree_as_text_or_by_value(one, other, is_same):
    assert agree(one, other) == agree(other, one) == is_same


def test_f1_by_hand():
    # 2 shared words: precision 2/3, recall 2/2, F1 = 2 * (2/3 * 1) / (2/3 + 1) = 0.8
    assert token_f1("new york city", "new york") == pytest.approx(0.8)
    # Of three "a" one is shared: precision 1/3, recall 1/2, F1 = 0.4
    assert token_f1("a a a", "a b") == pytest.approx(0.4)
    assert token_f1("x", "y") == 0.0
    assert token_f1("", "") == 0.0


@given(st.lists(st.sampled_from("xyz")), st.lists(st.sampled_from("xyz")))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(prediction, answer):
    shared = sum(min(n, Counter(answer)[word]) for word, n in Counter(prediction).items())
    expected = 0.0
    if shared:
        precision, recall = shared / len(prediction), shared / len(answer)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(" ".join(prediction), " ".join(answer)) == pytest.approx(expected)


@pytest.mark.parametrize(("one", "other"), [("yes", "yes it is"), ("no", "no one"), ("no one", "no"), ("yes", "no")])
def test_yes_and_no_agree_with_themselves_alone(one, other):
    assert token_f1(one, other) == 0.0
    assert token_f1(one, one) == 1.0
