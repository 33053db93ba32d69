"""What functions of the user's judge answers with."""

from __future__ import annotations

from collections.abc import Sequence

from appo.core.trajectory import Segment, Trajectory
from appo.rewards import response_format
from appo.rewards.answer_grading import AnswerPlace
from appo.rewards.verdicts import verdict


def final_answer(response: Trajectory | str, place: AnswerPlace = "box") -> str | None:
    r"""The final answer of a response, whatever its form.

    Args:
        response: a trajectory, in which tool output gives no answer; or a text, taken for the policy's own as a whole.
        place: `box`: the content of the last ``\boxed{...}``; `answer`: that of the last ``<answer>...</answer>``, out
            of its box if it has one; `response`: all that follows the last thought and the last tool output.

    Returns:
        The answer; None if there is none.

    Raises:
        ValueError: if there is no such place.
    """
    if place not in ("box", "answer", "response"):
        raise ValueError(f"place must be box, answer or response, got {place!r}")
    segments = (Segment(response, is_generated=True),) if isinstance(response, str) else response.segments
    return response_format.final_answer(segments, place) or None


def same_answer(answer: str | None, accepted: str) -> bool:
    """Whether an answer is an accepted one, by the comparison of `AnswerReward`; no answer is none.

    Args:
        answer: as `final_answer` returns it.
        accepted: what it is held against.
    """
    return answer is not None and bool(verdict(answer, accepted))


def answer_groups(answers: Sequence[str | None]) -> list[int | None]:
    """Groups answers by what they mean, as `same_answer` compares them.

    Args:
        answers: None for those that are no answer.

    Returns:
        The group of each, numbered by the first in it; None where there is no answer. An answer that equals those of
        several groups goes to the first.
    """
    number_of: dict[str, int] = {}
    first: list[str] = []
    for answer in answers:
        if answer is not None and answer not in number_of:
            found = (number for number, other in enumerate(first) if same_answer(answer, other))
            number_of[answer] = next(found, len(first))
            if number_of[answer] == len(first):
                first.append(answer)
    return [None if answer is None else number_of[answer] for answer in answers]
