"""From the rows of a source to rows of token ids, with an account of those that are left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Literal

from appo.prompts.base import PromptSource, UnusableRow, refusal, usable
from appo.prompts.contamination import BenchmarkIndex, ContaminatedRow
from appo.prompts.loading import CHUNK_ROWS, RowAccount
from appo.sft.conversations import Conversation, ConversationSource, ConversationSplit
from appo.sft.encoding import ConversationEncoder, Example, Rendered

_LABEL = re.compile(r"^\W*(question|problem|query)\W*:", re.IGNORECASE)


@dataclass(frozen=True)
class LoadedConversations(RowAccount):
    """The rows to learn from and what became of the other ones.

    Attributes:
        examples: in the order of the source.
    """

    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class ConversationLoader:
    """Reads, renders, tokenizes and checks the conversations of a source.

    Attributes:
        encoder: to token ids.
        max_tokens: longest row.
        unusable_rows: `error` refuses data with an unusable row, `skip` leaves the row out.
        benchmarks: questions that what users say in training conversations is compared with.
        contaminated_rows: `report` keeps training conversations about a question of a benchmark, `remove` leaves them
            out.
    """

    encoder: ConversationEncoder
    max_tokens: int
    unusable_rows: Literal["error", "skip"] = "error"
    benchmarks: Sequence[PromptSource] = ()
    contaminated_rows: Literal["report", "remove"] = "report"

    def __call__(self, source: ConversationSource, split: ConversationSplit) -> LoadedConversations:
        """The rows of one split; none for a validation split that the source has not.

        Raises:
            ValueError: if a row is unusable and must not be, or none is left for the training.
            FileNotFoundError: if a file is missing.
        """
        loaded = LoadedConversations()
        conversations = usable(source.rows(split), loaded.unusable)
        if split == "train" and self.benchmarks:
            find = partial(_find, BenchmarkIndex(self.benchmarks))
            conversations = loaded.kept(conversations, find, self.contaminated_rows == "remove")
        rendered = self._rendered(conversations, loaded)
        while chunk := list(islice(rendered, CHUNK_ROWS)):
            examples = iter(self.encoder.tokenize([row for _, rows in chunk for row in rows]))
            for conversation, rows in chunk:
                self._add([next(examples) for _ in rows], conversation, loaded)
        if loaded.unusable and self.unusable_rows == "error":
            raise ValueError(refusal(loaded.unusable))
        if split == "train" and not loaded.examples:
            raise ValueError(f"data.source must have a usable training conversation, got {loaded.describe()}")
        return loaded

    def _rendered(
        self, conversations: Iterator[Conversation], loaded: LoadedConversations
    ) -> Iterator[tuple[Conversation, list[Rendered]]]:
        for conversation in conversations:
            try:
                rows = self.encoder.render(conversation)
            except ValueError as error:
                message = f"{_place(conversation)}: {error}"
                loaded.unusable.append(UnusableRow(conversation.origin, conversation.row, "template", message))
            else:
                yield conversation, rows

    def _add(self, examples: list[Example], conversation: Conversation, loaded: LoadedConversations) -> None:
        if (longest := max(map(len, examples))) <= self.max_tokens:
            loaded.examples.extend(examples)
            return
        rule = f"must have at most data.max_tokens = {self.max_tokens} tokens, got {longest}"
        message = f"{_place(conversation)} {rule}"
        loaded.unusable.append(UnusableRow(conversation.origin, conversation.row, "too_long", message))


def _find(index: BenchmarkIndex, conversation: Conversation) -> ContaminatedRow | None:
    asked = (text for message in conversation.messages if message.role == "user" for text in _asked(message.content))
    return index.find_any(asked, str(conversation.row), conversation.origin, conversation.row)


def _asked(content: str) -> Iterator[str]:
    """What a user may ask in a message: all of it, or a line among instructions."""
    yield content
    for line in content.splitlines():
        if len(line.split()) > 2:
            yield _LABEL.sub("", line)


def _place(conversation: Conversation) -> str:
    return f"row {conversation.row} of {conversation.origin}" if conversation.origin else "a conversation"
