"""Tool calls and results as the policy's own chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appo.tools.tag_syntax import CALL_SYNTAXES, CallSyntax, ParsedCall, RenderChat

_MARK = "\N{END OF TRANSMISSION BLOCK}turn\N{END OF TRANSMISSION BLOCK}"
"""Stands for the turn that called in a rendered conversation; only what the template puts behind it is kept."""

_MAX_KEPT_CHARS = 1000
"""Of a call that is written wrongly."""


@CALL_SYNTAXES.register
@dataclass(frozen=True)
class ChatTemplateSyntax(CallSyntax):
    """Calls as JSON in tags, any number in a turn, answered by a turn of results that the chat template writes.

    This is how the models of the Hermes and Qwen families call tools:
    ``<tool_call>{"name": "python", "arguments": {"code": "1 + 1"}}</tool_call>``. A turn's calls run when the model has
    ended the turn. What it writes in a thought, up to the last `thought_end`, calls nothing.
    """

    describes_tools = True

    call_start: str = "<tool_call>"
    """Opens a call."""
    call_end: str = "</tool_call>"
    """Closes a call."""
    thought_start: str = "<think>"
    """Opens a thought; a turn whose last thought is not closed calls nothing."""
    thought_end: str = "</think>"
    """Closes a thought."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as ``enable_thinking``; the same as in the prompts."""

    def __post_init__(self) -> None:
        for name in ("call_start", "call_end", "thought_start", "thought_end"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty, got {getattr(self, name)!r}")

    @property
    def thought_tags(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.thought_start, *super().thought_tags)))

    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        return ()

    def parse(self, text: str, tools: Sequence[str], limit: int) -> tuple[ParsedCall, ...]:
        spoken = text.rpartition(self.thought_end)[2]
        if self.thought_start in spoken:
            return ()
        calls: list[ParsedCall] = []
        start = spoken.find(self.call_start)
        while start >= 0 and len(calls) < limit:
            call, length = self._read(spoken[start + len(self.call_start) :], end=len(text))
            calls.append(call)
            start = spoken.find(self.call_start, start + len(self.call_start) + length)
        return tuple(calls)

    def format_results(self, results: Sequence[str], turn: str, render: RenderChat) -> str:
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        answered = [*asked, *({"role": "tool", "content": result} for result in results)]
        behind = render(answered, add_generation_prompt=True, **self.template_options).partition(_MARK)[2]
        end = render(asked, add_generation_prompt=False, **self.template_options).partition(_MARK)[2].strip()
        # The model has sampled the end of its turn, unless it ended with another token than the template's.
        return behind.removeprefix(end) if turn.endswith(end) else behind

    def _read(self, text: str, end: int) -> tuple[ParsedCall, int]:
        """The call that a text begins with, and the number of its characters; the JSON may well hold a tag."""
        body = text.lstrip()
        try:
            value, length = json.JSONDecoder().raw_decode(body)
            written = json.dumps(value, ensure_ascii=False)
            written.encode()  # half of a surrogate pair is valid JSON, but no text
        except (ValueError, RecursionError) as error:
            written = body[:_MAX_KEPT_CHARS].partition(self.call_end)[0].strip()
            return ParsedCall("", written, end, error=f"Error: the tool call is no valid JSON: {error}"), 0
        length += len(text) - len(body)
        if not text[length:].lstrip().startswith(self.call_end):
            problem = f"Error: a tool call must be one JSON object with {self.call_end} behind it"
            return ParsedCall("", written[:_MAX_KEPT_CHARS], end, error=problem), length
        match value:
            case {"name": str(name), "arguments": dict(arguments)}:
                return ParsedCall(name, json.dumps(arguments, ensure_ascii=False), end, arguments), length
        problem = 'Error: a tool call must be a JSON object with a text "name" and an object "arguments"'
        return ParsedCall("", written[:_MAX_KEPT_CHARS], end, error=problem), length
