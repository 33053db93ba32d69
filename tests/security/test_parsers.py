"""What a policy writes is parsed in time and memory that its length bounds."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from appo.core.trajectory import Segment
from appo.rewards.answer_text import normalize_answer
from appo.rewards.response_format import FormatError, boxed_answer
from appo.rewards.verdicts import MAX_LENGTH, verdict
from appo.tools import ChatTemplateSyntax, TagSyntax

TOOLS = ("python", "search")
LENGTH = 200_000
TURNS = {
    "openings": "<tool_call>",
    "openings of objects": '<tool_call>{"a": ',
    "openings in texts": '<tool_call>["',
    "openings of lists": "<tool_call>[",
    "openings of numbers": "<tool_call>1",
    "objects that close": "<tool_call>{}",
    "whole calls": '<tool_call>{"name": "python", "arguments": {}}</tool_call>',
    "space": "<tool_call> ",
    "thoughts": "<think>",
    "ends of thoughts": "</think><tool_call>",
    "tags that open": "<python>",
    "tags that close": "</python>",
    "tags that close another": "<search></python>",
    "tags that half close": "</python",
}


@pytest.mark.parametrize("part", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("syntax", [ChatTemplateSyntax(), TagSyntax()], ids=lambda syntax: type(syntax).__name__)
def test_a_turn_that_repeats_itself_is_parsed_at_once(syntax, part):
    turn = part * (LENGTH // len(part))
    tracemalloc.start()
    syntax.parse(turn, TOOLS, 7)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 8 * 2**20
    started = time.process_time()
    syntax.parse(turn, TOOLS, 7)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("part", TURNS.values(), ids=TURNS)
def test_no_more_calls_are_found_than_are_of_use_and_none_keeps_the_turn(part):
    calls = ChatTemplateSyntax().parse(part * (LENGTH // len(part)), TOOLS, 7)
    assert len(calls) <= 7
    assert all(len(call.argument) <= 1000 for call in calls)


@pytest.mark.parametrize("judge", [normalize_answer, lambda text: verdict(text, "Oslo")], ids=["normalizer", "verdict"])
def test_answers_that_are_too_long_to_be_read_are_not_kept(judge):
    tracemalloc.start()
    for number in range(200):
        judge(f"{number} " * 50_000)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 4 * 2**20  # of 40 MB


ANSWERS = {
    "names with an index each": "x" + "_1" * 70,
    "names within names": "x" + "_{1" * 28 + "}" * 28,
    "marks over marks": r"\vec" * 100 + "x",
    "texts within texts": r"\text" * 90 + "x",
    "one sign that stands for many": " or <a>" + "\N{VULGAR FRACTION ONE HALF}" * 900,
    "one ligature that stands for many": "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * MAX_LENGTH,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_no_larger_once_it_is_read(answer):
    tracemalloc.start()
    assert not verdict(answer, "y_2")
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 4 * 2**20
    started = time.process_time()
    assert not verdict(answer, f"z{answer[1:]}")
    assert time.process_time() - started < 0.1
    assert verdict(answer, answer)


def test_the_form_of_a_turn_that_repeats_itself_is_read_in_time_that_its_length_bounds():
    segments = [Segment("<python>" * (LENGTH // 8) + "</python>", is_generated=True)]
    started = time.process_time()
    with pytest.raises(FormatError):
        boxed_answer(segments, ["python", "search"], require_think=True)
    assert time.process_time() - started < 1.0
