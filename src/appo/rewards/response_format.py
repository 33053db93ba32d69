"""The form of a response: thoughts, calls and results, and one boxed answer, in an order that makes sense.

Only what the policy wrote is read; tool output is a mark between two stretches of it and can neither break nor fake the
form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from appo.core.trajectory import Segment
from appo.rewards.answer_text import last_boxed

TOOL_OUTPUT = "\x00"
"""Stands for tool output in the text that is read."""


class FormatError(ValueError):
    """A response does not have the form it must have; the text says where it fails."""


def boxed_answer(segments: Sequence[Segment], tools: Collection[str], *, require_think: bool) -> str:
    r"""The final answer of a response that has the right form.

    - Every ``<think>`` is closed before the next one opens, and every ``</think>`` was opened.
    - Every call is complete, and the tool's output follows it; the policy writes no ``<result>`` itself.
    - There is one ``<answer>...</answer>``, outside of thoughts, and its content has a ``\boxed{...}``.

    Args:
        segments: of the response.
        tools: names of the tools whose tags are calls.
        require_think: whether there must be at least one thought.

    Returns:
        The content of the last box.

    Raises:
        FormatError: at the first rule that is broken.
    """
    answers = _answers(_marked_text(segments), tools, require_think)
    if len(answers) != 1:
        raise FormatError(f"there must be one answer, got {len(answers)}")
    boxed = last_boxed(answers[0])
    if boxed is None:
        raise FormatError("the answer must hold a \\boxed{...} whose braces balance")
    return boxed


def final_answer(segments: Sequence[Segment], place: str) -> str | None:
    r"""The final answer of a response, whatever its form.

    Args:
        segments: of the response.
        place: `box` takes the content of the last ``\boxed{...}``; `answer` that of the last ``<answer>...</answer>``,
            out of its box if it has one; `response` all that follows the last thought and the last tool output.

    Returns:
        What the policy wrote there; None if there is no such place, or tool output stands within.
    """
    text = _marked_text(segments)
    if place == "response":
        ending = text.rpartition(TOOL_OUTPUT)[2].rpartition("</think>")[2]
        return ending.partition("<think>")[0].strip()
    if place == "answer":
        span = last_answer_span(text)
        if span is None:
            return None
        text = text[slice(*span)]
    boxed = last_boxed(text)
    answer = text.strip() if boxed is None and place == "answer" else boxed
    return None if answer is None or TOOL_OUTPUT in answer else answer


def last_answer_span(text: str) -> tuple[int, int] | None:
    """Where the content of the last ``<answer>...</answer>`` begins and ends, or None if the last is not closed."""
    before, opening, _ = text.rpartition("<answer>")
    start = len(before) + len(opening)
    end = text.find("</answer>", start)
    return (start, end) if opening and end >= 0 else None


def _marked_text(segments: Sequence[Segment]) -> str:
    """What the policy wrote, with a mark for each tool output."""
    return "".join(s.text.replace(TOOL_OUTPUT, "") if s.is_generated else TOOL_OUTPUT for s in segments)


def _answers(text: str, tools: Collection[str], require_think: bool) -> list[str]:
    """Walks over the tags; at most one element is open at a time, but that a call may stand within a thought."""
    answers: list[str] = []
    num_thoughts = 0
    is_thinking = False
    position = 0
    pattern = _tag_pattern(tuple(sorted(tools)))
    ends: dict[str, int] = {}
    while tag := pattern.search(text, position):
        position = tag.end()
        is_closing, name = tag[1] == "/", tag[2]
        if name == "result":
            raise FormatError("a result must come from a tool, not from the policy")
        if name == "think":
            if is_closing != is_thinking:
                raise FormatError(f"{tag[0]} must {'follow' if is_closing else 'not stand within'} <think>")
            is_thinking = not is_closing
            num_thoughts += is_closing
        elif is_closing:
            raise FormatError(f"{tag[0]} must follow <{name}>")
        elif name == "answer":
            if is_thinking:
                raise FormatError("the answer must stand outside of <think>...</think>")
            answers.append(_content(text, tag, pattern))
            position += len(answers[-1]) + len("</answer>")
        else:
            position = _end_of_call(text, tag, ends)
    if is_thinking:
        raise FormatError("<think> must be closed")
    if require_think and not num_thoughts:
        raise FormatError("there must be a thought in <think>...</think>")
    return answers


@lru_cache(maxsize=64)
def _tag_pattern(tools: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"<(/?)({'|'.join(map(re.escape, ('think', 'answer', 'result', *tools)))})>")


def _content(text: str, opening: re.Match[str], pattern: re.Pattern[str]) -> str:
    following = pattern.search(text, opening.end())
    if following is None or following[0] != "</answer>":
        raise FormatError("<answer> must be closed before any other tag")
    content = text[opening.end() : following.start()]
    if TOOL_OUTPUT in content:
        raise FormatError("the answer must not hold tool output")
    return content


def _end_of_call(text: str, opening: re.Match[str], ends: dict[str, int]) -> int:
    """Where the text goes on after a call and its tool's output; what stands within a call is the tool's business.

    Args:
        text: of the response.
        opening: the tag of the call.
        ends: where the closing tag was that was looked for last, by name; one that lies ahead is not looked for again.
    """
    closing = f"</{opening[2]}>"
    if ends.get(opening[2], -1) < opening.end():
        ends[opening[2]] = text.find(closing, opening.end())
    end = ends[opening[2]]
    if end < 0:
        raise FormatError(f"{opening[0]} must be closed")
    if text.find(opening[0], opening.end(), end) >= 0:
        # The call begins at the nearest tag; this one was a mention of the tool.
        return opening.end()
    if TOOL_OUTPUT in text[opening.end() : end]:
        raise FormatError(f"{opening[0]} must be closed before tool output follows")
    output = text.find(TOOL_OUTPUT, end)
    # The last token of a closing tag may hold white space or punctuation beyond it.
    if output < 0 or "<" in text[end + len(closing) : output]:
        raise FormatError(f"a result must follow {closing}")
    return output + 1
