"""Conversations from files, in the forms in which they are published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appo.core.foreign_json import beginning, is_encodable, listed, parse_json
from appo.core.foreign_parquet import parquet_rows
from appo.core.trajectory import Segment
from appo.prompts.base import UnusableRow, UnusableRowError, only_usable
from appo.prompts.files import existing_file, json_records, jsonl_records
from appo.prompts.rows import Record
from appo.sft.conversations import CONVERSATION_SOURCES, Conversation, ConversationSource, ConversationSplit, Message

_LISTS = ("messages", "conversations")
"""Keys of a list of messages."""

_PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"))
"""Keys of what the user says and of what the assistant replies, in rows of one turn."""

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
}
"""Roles as chat templates know them, by the names that files have for them."""


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class FileConversations(ConversationSource):
    """Conversations of files that end in `.json`, `.jsonl` or `.parquet`, one a row.

    A row has `messages` or `conversations`, a list of objects with `role` and `content`, or with `from` (`human`,
    `gpt`, `system`, `function_call`, `observation`) and `value`; or `instruction` with `input` and `output`, `prompt`
    with `response` or `completion`. Beside them it may have `system`, `history` (pairs) and `tools`, a list or its JSON
    text. Calls stand in tags within what the assistant says, or in `tool_calls`, or are a message of `function_call`.
    Parquet needs the extra `data`.
    """

    train: str | tuple[str, ...]
    """Files of the conversations to learn from."""
    validation: str | tuple[str, ...] | None = None
    """Files of the conversations that training is watched with."""
    tool_output: str = r"\s*<result>.*?</result>"
    """Regular expression of tool output within what an assistant says, which it did not write; empty for none."""
    pair_keys: tuple[str, str] | None = None
    """Keys of what the user says and of what the assistant replies, where they have other names than those above."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.tool_output)
        except re.error as error:
            raise ValueError(f"tool_output must be a regular expression, got {self.tool_output!r}: {error}") from error

    def load(self, split: ConversationSplit) -> Sequence[Conversation]:
        conversations = only_usable(self.rows(split))
        if not conversations and self._names(split):
            raise ValueError(f"{split} must be files with one conversation at least, got none in {self._names(split)}")
        return conversations

    def rows(self, split: ConversationSplit) -> Iterator[Conversation | UnusableRow]:
        for name in self._names(split):
            unit, records = _records(existing_file(split, name), split)
            for record in records:
                place = f"{unit} {record.number} of {name}"
                try:
                    yield replace(self._conversation(record, place), origin=name, row=record.number)
                except UnusableRowError as error:
                    yield UnusableRow(name, record.number, error.reason, str(error))

    def _names(self, split: ConversationSplit) -> tuple[str, ...]:
        names = self.train if split == "train" else self.validation
        return (names,) if isinstance(names, str) else tuple(names or ())

    def _conversation(self, record: Record, place: str) -> Conversation:
        if record.problem:
            raise _unusable(place, record.problem)
        row = record.values
        said = self._said(row, place)
        messages = [self._message(message, f"message {number} in {place}") for number, message in enumerate(said)]
        if not any(message.role == "assistant" for message in messages):
            raise UnusableRowError("no_response", f"{place} must have a message of the assistant, got none")
        system = row.get("system")
        if isinstance(system, str) and system and messages[0].role != "system":
            messages.insert(0, Message("system", (Segment(system, False),)))
        tools = _tools(row.get("tools"), place)
        try:
            text = json.dumps([tools, *((m.content, m.tool_calls) for m in messages)], default=str, ensure_ascii=False)
        except RecursionError:
            raise _unusable(place, "have calls and tools that are nested less deeply") from None
        if not is_encodable(text):
            raise _unusable(place, "have texts that UTF-8 can encode, got half of a surrogate pair")
        return Conversation(tuple(messages), tools)

    def _said(self, row: Mapping[str, Any], place: str) -> list[Any]:
        """The messages of a row as they stand there."""
        for key in _LISTS:
            if messages := row.get(key):
                if not isinstance(messages, list):
                    raise _unusable(place, f"have `{key}`, a list of messages, got {beginning(messages)}")
                return messages
        pairs = _PAIRS if self.pair_keys is None else (self.pair_keys,)
        asked, replied = next(((row[a], row[b]) for a, b in pairs if a in row and b in row), (None, None))
        if asked is None:
            known = [*_LISTS, *(" with ".join(pair) for pair in pairs)]
            raise _unusable(place, f"have one of {', '.join(known)}, got the keys {listed(row)}")
        if row.get("input") and asked is row.get("instruction"):
            asked = f"{asked}\n{row['input']}"
        earlier = row.get("history") or []
        if not isinstance(earlier, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in earlier):
            raise _unusable(place, f"have `history`, a list of pairs, got {beginning(earlier)}")
        said: list[Any] = []
        for question, answer in (*earlier, (asked, replied)):
            for role, content in (("user", question), ("assistant", answer)):
                said += content if isinstance(content, list) else [{"role": role, "content": content}]
        return said

    def _message(self, message: Any, place: str) -> Message:
        if not isinstance(message, dict):
            raise _unusable(place, f"be an object, got {beginning(message)}")
        name = message.get("role", message.get("from"))
        if not isinstance(name, str) or name not in _ROLES:
            raise _unusable(place, f"have a role or `from` of {', '.join(_ROLES)}, got {beginning(name)}")
        text = _text(message.get("content", message.get("value")), place)
        calls = message.get("tool_calls") or ()
        if name == "function_call":
            calls, text = _json(text, "a call, or a list of calls", place), ""
            calls = [calls] if isinstance(calls, dict) else calls
        if not isinstance(calls, list | tuple):
            raise _unusable(place, f"have `tool_calls`, a list, got {beginning(calls)}")
        role = _ROLES[name]
        if role != "assistant":
            return Message(role, (Segment(text, False),))
        if thought := message.get("reasoning_content"):
            text = f"<think>\n{_text(thought, place)}\n</think>\n\n{text}"
        if not text.strip() and not calls:
            raise UnusableRowError("no_response", f"{place} must have a text or `tool_calls`, got neither")
        segments = tuple(self._segments(text))
        if calls and not all(segment.is_generated for segment in segments):
            raise _unusable(place, "have its calls in its text or in `tool_calls`, got both")
        return Message(role, segments, tuple(_call(call, place) for call in calls))

    def _segments(self, text: str) -> Iterator[Segment]:
        """What the assistant says, cut where tool output begins and ends."""
        start = 0
        for match in re.finditer(self.tool_output, text, re.DOTALL) if self.tool_output else ():
            if match.start() > start:
                yield Segment(text[start : match.start()], True)
            yield Segment(match.group(), False)
            start = match.end()
        if start < len(text):
            yield Segment(text[start:], True)


def _records(path: Path, split: ConversationSplit) -> tuple[str, Iterator[Record]]:
    """What a row of a file is called, and its rows; objects in lines are also found in files that end in `.json`."""
    if path.suffix == ".parquet":
        rows = parquet_rows(path, split, FileConversations.__name__, "data")
        return "row", (Record(number, _without_none(row)) for number, row in enumerate(rows))
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{split} must name files that end in .json, .jsonl or .parquet, got {str(path)!r}")
    if path.suffix == ".json":
        with path.open("rb") as file:
            if file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                return "row", json_records(path, split)
    return "line", jsonl_records(path)


def _without_none(value: Any) -> Any:
    """A value of a table without the keys that only other rows have: a table gives all objects the same keys."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _unusable(place: str, rule: str) -> UnusableRowError:
    return UnusableRowError("unreadable", f"{place} must {rule}")


def _text(content: Any, place: str) -> str:
    """The text of a message, which may come in parts."""
    parts = content if isinstance(content, list) else [content or ""]
    found = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(parts):
        raise _unusable(place, f"have a text as its content, got {beginning(content)}")
    return "".join(texts)


def _json(text: str, what: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise _unusable(place, f"be the JSON of {what}, got {text[:80]!r}") from None


def _tools(tools: Any, place: str) -> tuple[dict[str, Any], ...]:
    """Descriptions of tools as templates take them: some files have them as JSON text, or the functions alone."""
    if isinstance(tools, str):
        tools = _json(tools, "a list of tools", f"`tools` in {place}") if tools.strip() else None
    tools = tools or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _unusable(place, f"have `tools`, a list of objects, got {beginning(tools)}")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _call(call: Any, place: str) -> dict[str, Any]:
    """A call as templates take it: some services write the arguments as JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError:
            arguments = None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
        raise _unusable(place, f"have `tool_calls` with a text `name` and an object `arguments`, got {beginning(call)}")
    return {"type": "function", "function": {**function, "arguments": arguments}}
