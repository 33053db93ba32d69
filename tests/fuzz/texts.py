"""Targets that read what a policy wrote: the normalizer, the graders and the parsers of calls."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import strategies as st

from appo.rewards import AnswerReward, ExactMatchReward, Grading, JudgeReward, MathReward
from appo.rewards.answer_text import last_boxed, normalize_answer, rational, shorten_number, unwrap_latex
from appo.rewards.notation import clean, mathematical, plain, unwrapped
from appo.rewards.quoting import quoted
from appo.rewards.verdicts import MAX_LENGTH, verdict
from appo.rollouts.inert_text import InertText
from appo.tools import ChatTemplateSyntax, TagSyntax
from tests.fuzz.inputs import LONGEST, texts
from tests.fuzz.target import Check, FindingError, Input, Target
from tests.rewards.responses import trajectory
from tests.rollouts.chat import make_chat_tokenizer

_ANSWERS = [
    *("\\boxed{", "\\fbox {", "{", "}", "\\{", "\\}", "\\", "(", ")", "[", "]", "|", "$", "~", "^", "_", "!", "%"),
    *("\\frac{", "\\frac", "\\dfrac12", "\\sqrt[", "\\sqrt", "\\binom", "\\text{", "\\mathrm{", "\\overline{"),
    *("\\pm ", "\\left", "\\right", "\\,", "\\!", "{,}", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\circ"),
    *("\\cup ", "1", "9", "-1", "3.14", ".5", "1,000", "1 000", "1e9", "10^", "9" * 40, "0"),
    *("\N{ARABIC-INDIC DIGIT FOUR}", "x", "y", "e", "i", "pi", "\\pi ", "sin ", "log_", "ln", "and ", " or ", "in "),
    *(" to ", "-", "+", "*", "/", "=", "<", ">", "\\le ", ",", ", ", ";", ".", " ", "\n", "\t", "'", '"'),
    *("\N{MINUS SIGN}", "\N{VULGAR FRACTION ONE HALF}", "\N{SUPERSCRIPT TWO}", "\N{INFINITY}", "\N{SQUARE ROOT}"),
    *("\N{DEGREE SIGN}", "\N{EURO SIGN}", "\u200b", "\ud800", "a ", "the ", "Paris", "New York", "yes", "no", "B"),
    *("(B)", "May 5, 1999", "12:30 pm", "5 km", "10 percent", "II", "J. K.", "O'Brien", "van ", "C++", "NaCl2"),
    *("first ", "million", "mod ", "!!", "\\infty", "(-\\infty", "\\mathbb{R}", "_1", "_{1", "\\vec", "\\vec "),
]  # fmt: skip


def _normalize(value: Input) -> None:
    (text,) = value
    normalized = normalize_answer(text)
    boxed = last_boxed(text)
    if boxed is not None and boxed not in text:
        raise FindingError("the content of a box does not stand in the text")
    if len(normalized) > len(text) + 100:
        raise FindingError(f"{len(text)} characters become {len(normalized)}")
    number = shorten_number(text)
    if number is not None and shorten_number(number) != number:
        raise FindingError("a shortest number is not the shortest")
    rational(text)
    unwrap_latex(text[:4000])
    unwrapped(mathematical(plain(clean(text[:MAX_LENGTH]))))


@contextmanager
def _normalizer() -> Iterator[Check]:
    yield _normalize


_FORMS = [
    *("<think>", "</think>", "<answer>", "</answer>", "<python>", "</python>", "<result>", "</result>", "<search>"),
    *("</search>", "\\boxed{", "}", "{", "\x00", "Paris", "\\boxed{Paris}", "<", ">", "</", "so "),
]
_REWARDS = [
    *(AnswerReward(), AnswerReward(released_rules=True)),
    *(*(ExactMatchReward(Grading(answer_from=place)) for place in ("box", "answer", "response")),),
]
_MOST_MATHEMATICS = 60
"""Characters of answers that are compared in processes, where a comparison takes long."""


@contextmanager
def _graders() -> Iterator[Check]:
    mathematics = MathReward(timeout_s=1.0, num_processes=1)
    judge = JudgeReward("judge")
    by_json = JudgeReward("judge", verdict="json")
    mathematics.start()

    def check(value: Input) -> None:
        answer, accepted, response = value
        right = f"<think>so</think><answer>\\boxed{{{answer}}}</answer>"
        for text in (right, response, response.replace("Paris", answer, 1)[:LONGEST]):
            for reward in _REWARDS:
                result = reward(trajectory(text, ["<result>x</result>"], text[:50], answers=[accepted]))
                if not (math.isfinite(result.reward) and -1.0 <= result.reward <= 1.1):
                    raise FindingError(f"a reward of {result.reward}")
        # Of layout alone, such as a tilde, nothing is left that could be the same.
        if plain(clean(accepted)).strip(" .,;\"'") and verdict(accepted, accepted) is False:
            raise FindingError("an answer is not the same as itself")
        line = quoted(answer)
        if "\n" in line or not isinstance(json.loads(line), str):
            raise FindingError("a quoted answer is not one line of JSON")
        for each in (judge, by_json):
            if (score := each._read(response)) is not None and not 0.0 <= score <= 1.0:
                raise FindingError(f"a verdict of {score}")
        if max(map(len, (answer, accepted))) <= _MOST_MATHEMATICS and "\\frac" in answer + accepted:
            mathematics.score(answer, (accepted,))

    try:
        yield check
    finally:
        mathematics.stop()


_CALLS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<python>", "</python>", "<search>", "</search>"),
    *("<result>", "</result>", "<|im_end|>", "<|im_start|>", "<|eom_id|>", "<", "/", ">", "|", "{", "}", "[", "]"),
    *('"', ":", ",", "\\", '{"name": "python", "arguments": {"code": "1"}}', '{"name": "', '", "arguments": {'),
    *("null", "1e999", "NaN", "9" * 50, "\\ud800", "\\u0000", "\N{FULLWIDTH LESS-THAN SIGN}", "\u200b"),
    *("\x00", "\n", " ", "print(1)", "Infinity"),
]  # fmt: skip
_TOOLS = ("python", "search", "a.b", "x")
_CONTROLS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]


@contextmanager
def _calls() -> Iterator[Check]:
    tokenizer = make_chat_tokenizer()
    controls = set(tokenizer.convert_tokens_to_ids(_CONTROLS))
    inert = InertText(tokenizer, ["<tool_call>", "</tool_call>", "<result>", "</result>"])
    chat, tags = ChatTemplateSyntax(), TagSyntax()

    def check(value: Input) -> None:
        text, limit = value[0], len(value[1])
        for syntax, most in ((chat, limit), (tags, 1)):
            calls = syntax.parse(text, _TOOLS, limit)
            if len(calls) > most:
                raise FindingError(f"{len(calls)} calls, more than {most}")
            for call in calls:
                if not 0 < call.end <= len(text):
                    raise FindingError("a call ends outside of the text")
                if call.tool and call.tool not in _TOOLS and call.tool not in text and syntax is tags:
                    raise FindingError(f"a call of {call.tool!r}, which the text does not name")
                if sum(map(len, (call.tool, call.argument, call.error or ""))) > 6 * len(text) + 2000:
                    raise FindingError("a call is longer than the text")
                if syntax is chat:
                    call.argument.encode()
        result = inert(text[:4000])
        if controls.intersection(tokenizer(result, add_special_tokens=False)["input_ids"]):
            raise FindingError("a control token comes of a result")
        if "<tool_call>" in result or "</result>" in result:
            raise FindingError("a tag comes of a result")

    yield check


TARGETS = [
    Target("normalizer", st.tuples(texts(_ANSWERS)), _normalizer, seconds=0.2),
    Target("graders", st.tuples(texts(_ANSWERS), texts(_ANSWERS), texts([*_FORMS, *_ANSWERS[:12]])), _graders, 0.5),
    Target("calls", st.tuples(texts(_CALLS), st.text(alphabet="x", min_size=1, max_size=4)), _calls, seconds=0.3),
]
