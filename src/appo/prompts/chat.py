"""Questions in the policy's chat template, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from appo.prompts.base import Question, with_system_prompt


class ChatEncoder:
    """Renders questions in the chat template of a tokenizer, up to where the response begins, and tokenizes them.

    Args:
        tokenizer: of the policy.
        system_addition: text that is put behind the system message of every conversation, an empty line between;
            a conversation without one gets it as its system message.
        tool_schemas: descriptions of the tools, as chat templates take them in ``tools=``; None for templates without.
        template_options: further variables of the chat template.
        system_prompt: system message of every conversation, in place of its own; None leaves that.

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
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer of model.policy must have a chat template, got none")
        self.tokenizer = tokenizer
        self.system_addition = system_addition
        self.system_prompt = system_prompt
        self.template_options = dict(template_options or {})
        self.tool_schemas: list[dict[str, Any]] | None = None
        if tool_schemas:
            probe = [Question("probe", ({"role": "user", "content": "?"},), ("!",))]
            without = self.render(probe)
            self.tool_schemas = [dict(schema) for schema in tool_schemas]
            if self.render(probe) == without:
                raise ValueError(
                    "the chat template of model.policy must take `tools` for data.tool_schemas, got one that leaves "
                    "them out; describe the tools in the system prompt instead"
                )

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
        if self.system_addition is None:
            return messages
        if messages[0]["role"] != "system":
            return [{"role": "system", "content": self.system_addition}, *messages]
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{self.system_addition}"}, *messages[1:]]
