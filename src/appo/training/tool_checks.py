"""What can be known before a run of tools, the way they are called, and the policy that calls them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from appo.policy.text import decode, encode
from appo.rollouts.episode import Limits
from appo.rollouts.tool_turns import chat_renderer
from appo.tools import CallSyntax, ToolRunner


def check_tools(tokenizer: PreTrainedTokenizerBase, syntax: CallSyntax, runner: ToolRunner, limits: Limits) -> None:
    """Refuses a syntax that the policy cannot write, or its chat template cannot, and limits on tools there are not.

    Args:
        tokenizer: of the policy.
        syntax: how calls and results are written.
        runner: started.
        limits: what one trajectory may use.

    Raises:
        ValueError: if one of them does not fit.
        Exception: whatever the chat template raises.
    """
    if unknown := sorted(limits.max_calls_per_tool.keys() - runner.tools.keys()):
        raise ValueError(
            f"rollout.limits.max_calls_per_tool must name tools there are ({', '.join(runner.tools)}), "
            f"got {unknown[0]!r}"
        )
    if not runner.tools:
        return
    check_stop_strings(tokenizer, syntax.stop_strings(tuple(runner.tools)))
    try:
        shown = syntax.format_results(["3 + 4 = 7"], "", chat_renderer(tokenizer, runner))
    except Exception as error:
        error.add_note("raised while a tool's result was written as rollout.syntax and the policy's chat template say")
        raise
    if "3 + 4 = 7" not in shown:
        raise ValueError(
            "rollout.syntax must show the results of tools, but it and the policy's chat template make "
            f"{shown!r} of the result '3 + 4 = 7'"
        )


def check_stop_strings(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
    """Refuses stop strings that no sequence of the policy's tokens can spell.

    Raises:
        ValueError: if there is one.
    """
    for string in stop:
        spelled = decode(tokenizer, encode(tokenizer, string))
        if string not in spelled:
            raise ValueError(
                "rollout.syntax must end calls with strings that the policy can produce, but its tokenizer makes "
                f"{spelled!r} of {string!r}"
            )
