"""What can be known before a run of tools, the way they are called, and the policy that calls them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from transformers import AutoConfig, PreTrainedTokenizerBase

from appo.core.trajectory import Prompt
from appo.policy.text import decode, encode, end_ids, turn_end, turn_end_id
from appo.rollouts.episode import Limits
from appo.rollouts.tool_turns import chat_renderer
from appo.tools import CallSyntax, ToolRunner

log = logging.getLogger(__name__)


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


def check_token_ids(prompts: Sequence[Prompt], policy: str) -> None:
    """Refuses prompts with tokens that the policy has no embedding of.

    Args:
        prompts: a few of those that will be sampled from.
        policy: Hugging Face model folder or name.

    Raises:
        ValueError: if there is one.
    """
    size = AutoConfig.from_pretrained(policy).get_text_config(decoder=True).vocab_size
    largest = max((max(prompt.token_ids, default=0) for prompt in prompts), default=0)
    if largest >= size:
        raise ValueError(
            f"the tokenizer of model.policy must have no tokens beyond the policy's {size} embeddings, got token "
            f"{largest} in a prompt; model.resize_token_embeddings of transformers makes room for added tokens"
        )


def warn_of_unnamed_tools(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], tools: Collection[str]
) -> None:
    """Says so if no prompt names a tool: a policy that was not taught to call it has no way to know of it.

    Args:
        tokenizer: of the policy.
        prompts: a few.
        tools: names of what the agent may call.
    """
    texts = [decode(tokenizer, prompt.token_ids) for prompt in prompts]
    unnamed = [tool for tool in tools if not any(tool in text for text in texts)]
    if texts and unnamed:
        log.warning(
            "no prompt names %s: unless it was taught to, the policy does not know that it may call %s; "
            "data.system_addition tells it how, or the instructions of rollout.syntax, which generated questions leave "
            "out unless data.source.tool_instructions is true",
            " or ".join(unnamed),
            "it" if len(unnamed) == 1 else "them",
        )


def warn_of_endless_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    """Says so if the chat template ends an assistant's message with text that is no token: engines do not stop there.

    Args:
        tokenizer: of the policy.
    """
    end = turn_end(tokenizer).strip()
    if end and turn_end_id(tokenizer) is None:
        log.warning(
            "the chat template ends an assistant's message with %r, which is no special token of the tokenizer; a "
            "response ends only where the policy writes one of %s",
            end,
            ", ".join(sorted(decode(tokenizer, [token]) for token in end_ids(tokenizer))) or "none",
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
