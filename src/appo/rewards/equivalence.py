"""Whether two answers are the same mathematics: imports nothing of the package, for a process of its own."""

from __future__ import annotations

import logging

from math_verify import parse, verify

# It says that its own limits are off; those of the process hold where theirs would not.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def is_equivalent(accepted: str, answer: str, float_rounding: int) -> bool:
    """Whether `answer` is mathematically equal to `accepted`.

    Args:
        accepted: the answer it is held against, in LaTeX or plain.
        answer: in LaTeX or plain.
        float_rounding: decimals that decimal numbers are compared to.
    """
    wanted, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (accepted, answer))
    return bool(verify(wanted, given, float_rounding=float_rounding, timeout_seconds=None))
