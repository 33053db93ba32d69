"""Questions in the policy's chat template, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from appo.prompts.base import Question, with_system_prompt
from appo.tools.tag_syntax import CallSyntax

_MARK = "a system message"


@dataclass(frozen=True)
class ToolInstructions:
    """Tells of tools in the words of a call syntax.

    Attributes:
        syntax: how calls are written.
        schemas: of the tools.
    """

    syntax: CallSyntax
    schemas: Sequence[Mapping[str, Any]]

    def __call__(self, conversation: str) -> str:
        """What a prompt that says so much already must say besides; empty if it is nothing."""
        return self.syntax.describe(self.schemas, conversation)


class ChatEncoder:
    """Renders questions in the chat template of a tokenizer, up to where the response begins, and tokenizes them.

    Args:
        tokenizer: of the policy.
        system_addition: text that is put behind the system message of every conversation, an empty line between;
            a conversation without one gets it as its system message.
        tool_schemas: descriptions of the tools, as chat templates take them in ``tools=``; None for templates without.
        template_options: further variables of the chat template.
        system_prompt: system message of every conversation, in place of its own; None leaves that.
        tool_instructions: what is put behind the system message where a conversation does not say it, or in front of
            the first message where the chat template takes no system message; None for nothing.

    Raises:
        ValueError: if the tokenizer has no chat template, or one that leaves `tool_schemas` out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_addition: str | None = None,
        tool_schemas: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        tool_instructions: ToolInstructions | None = None,
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer of model.policy must have a chat template, got none")
        self.tokenizer = tokenizer
        self.system_addition = system_addition
        self.system_prompt = system_prompt
        self.tool_instructions = tool_instructions
        self.template_options = dict(template_options or {})
        self.tool_schemas: list[dict[str, Any]] | None = None
        if tool_schemas:
            if not takes_tools(tokenizer, tool_schemas, self.template_options):
                raise tools_left_out("data.tool_schemas")
            self.tool_schemas = [dict(schema) for schema in tool_schemas]

    def render(self, questions: Sequence[Question]) -> list[str]:
        """The text of each prompt.

        Raises:
            ValueError: if the chat template refuses a conversation.
        """
        conversations = [self._messages(question) for question in questions]
        try:
            texts = self.tokenizer.apply_chat_template(
                conversations,
                tools=self.tool_schemas,  # type: ignore[arg-type]  # a list of dicts is one of dicts and functions
                add_generation_prompt=True,
                tokenize=False,
                **self.template_options,
            )
        except jinja2.TemplateError as error:
            roles = sorted({message["role"] for messages in conversations for message in messages})
            raise ValueError(
                f"the chat template of model.policy must take conversations of {', '.join(roles)}, it says: {error}"
            ) from error
        return cast(list[str], texts)

    def __call__(self, questions: Sequence[Question]) -> list[list[int]]:
        """The token ids of each prompt."""
        if not questions:
            return []
        # A prompt longer than the tokenizer expects is counted by whoever calls: no warning here.
        encoded = self.tokenizer(
            self.render(questions), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        token_ids: list[list[int]] = encoded["input_ids"]
        return token_ids

    def _messages(self, question: Question) -> list[dict[str, str]]:
        messages = list(question.messages)
        if self.system_prompt is not None:
            messages = with_system_prompt(messages, self.system_prompt)
        messages = _with_addition(messages, self.system_addition or "")
        if self.tool_instructions is None or not question.tool_instructions:
            return messages
        told = self.tool_instructions("\n".join(message["content"] for message in messages))
        if told and messages[0]["role"] != "system" and not self._takes_system_messages:
            return [{**messages[0], "content": f"{told}\n\n{messages[0]['content']}"}, *messages[1:]]
        return _with_addition(messages, told)

    @cached_property
    def _takes_system_messages(self) -> bool:
        """Whether the chat template shows a system message in front of the user's; some raise, some leave it out."""
        probe = [{"role": "system", "content": _MARK}, {"role": "user", "content": "?"}]
        try:
            return _MARK in str(self.tokenizer.apply_chat_template(probe, tokenize=False, **self.template_options))
        except jinja2.TemplateError:
            return False


def takes_tools(
    tokenizer: PreTrainedTokenizerBase, schemas: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> bool:
    """Whether a chat template shows the tools that it is given; some leave them out.

    Args:
        tokenizer: with the template.
        schemas: of the tools.
        options: further variables of the template.
    """
    without, told = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}],
            tools=tools,  # type: ignore[arg-type]  # a list of dicts is one of dicts and functions
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )
        for tools in (None, [dict(schema) for schema in schemas])
    )
    return bool(told != without)


def tools_left_out(what: str) -> ValueError:
    """The error for a chat template that does not take tools.

    Args:
        what: needs them, such as an option.
    """
    return ValueError(
        f"the chat template of model.policy must take `tools` for {what}, got one that leaves them out; "
        "describe the tools in the system prompt instead"
    )


def _with_addition(messages: list[dict[str, str]], addition: str) -> list[dict[str, str]]:
    """The conversation with a text behind its system message, or as one; an empty text adds nothing."""
    if not addition:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": addition}, *messages]
    return [{**messages[0], "content": f"{messages[0]['content']}\n\n{addition}"}, *messages[1:]]
