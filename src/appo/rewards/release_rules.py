"""The score of the authors' release, rule by rule: for comparing with its results, not for training on.

It reads the whole response, tool output included, and deletes signs, decimal points and LaTeX backslashes before it
compares; `AnswerReward` does right what is wrong here.
"""

from __future__ import annotations

import re
import string

from appo.rewards.answer_text import token_f1
from appo.rewards.response_format import FormatError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def released_answer(text: str, tools: tuple[str, ...], *, require_think: bool) -> str:
    r"""The final answer of a response that passes the release's checks.

    Thoughts are counted, not ordered; results are looked for as tags, whoever wrote them.

    Args:
        text: of the response, tool output included.
        tools: names of the tools whose calls need a result.
        require_think: whether there must be at least one thought.

    Returns:
        The content of the last box of the answer.

    Raises:
        FormatError: at the first check that fails.
    """
    if text.count("<think>") != text.count("</think>"):
        raise FormatError("there must be as many <think> as </think>")
    if require_think and "<think>" not in text:
        raise FormatError("there must be a thought in <think>...</think>")
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        raise FormatError("there must be one <answer> and one </answer>")
    for tool in tools:
        _check_results(text, tool)
    begin, end = text.find("<answer>"), text.find("</answer>")
    if end < begin:
        raise FormatError("<answer> must come before </answer>")
    answer = text[begin + len("<answer>") : end]
    if r"\boxed{" not in answer or "}" not in answer:
        raise FormatError("the answer must hold a \\boxed{...}")
    return _unboxed(answer)


def released_normalization(text: str) -> str:
    """Small letters without ASCII punctuation, articles and extra white space."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def released_f1(answer: str, accepted: str) -> float:
    """Word F1 after the release's normalization."""
    return token_f1(released_normalization(answer), released_normalization(accepted))


def _check_results(text: str, tool: str) -> None:
    position = 0
    while (call := text.find(f"<{tool}>", position)) >= 0:
        result = text.find("<result>", call)
        end_of_call = text.find(f"</{tool}>", call)
        position = text.find("</result>", result)
        if result < 0 or position < 0 or not call < end_of_call < result:
            raise FormatError(f"<{tool}>...</{tool}> must come before <result>...</result>")


def _unboxed(answer: str) -> str:
    """The content of the last box, which must balance; after a box without braces, all up to a dollar sign."""
    if r"\boxed " in answer:
        return answer.rpartition(r"\boxed ")[2].partition("$")[0]
    begin = answer.rfind(r"\boxed")
    depth = 0
    for position in range(begin, len(answer)):
        depth += (answer[position] == "{") - (answer[position] == "}")
        if answer[position] == "}" and depth == 0:
            boxed = answer[begin : position + 1]
            if not boxed.startswith(r"\boxed{"):
                break
            return boxed[len(r"\boxed{") : -1]
    raise FormatError("the last box of the answer must balance")
