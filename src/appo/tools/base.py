"""What every tool offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appo.registry import Registry
from appo.trajectory import ToolCall


class ToolError(Exception):
    """A tool's own way of saying that a call failed; its text becomes the result that the model reads."""


class ToolTimeoutError(ToolError):
    """A call failed because it outlasted the tool's own time limit."""


@dataclass(frozen=True)
class TokenCodec:
    """The policy's tokens, in which the length of a result is measured.

    Attributes:
        encode: token ids of a text that stands in the middle of a sequence.
        decode: text of token ids.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]

    def cut(self, text: str, max_tokens: int) -> str:
        """The first `max_tokens` tokens of a text; a text that is short enough comes back as it is."""
        if len(text.encode(errors="replace")) <= max_tokens:  # a token covers at least one byte
            return text
        token_ids = self.encode(text)
        if len(token_ids) <= max_tokens:
            return text
        beginning = self.decode(token_ids[:max_tokens])
        # Where the cut parts the bytes of a character, its first ones decode to the replacement character.
        return beginning if text.startswith(beginning) else beginning.rstrip("\N{REPLACEMENT CHARACTER}")


class Tool(ABC):
    """Something an agent may call in the middle of its response.

    Calls come from several threads at once. Whatever a call raises becomes the text of its result and is counted; a
    call that outlasts `timeout_s` is given up.
    """

    timeout_s: float = 30.0
    """Seconds after which a call is given up."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the model writes to address the tool: ``python`` makes ``<python>...</python>``."""

    @abstractmethod
    def __call__(self, argument: str) -> str:
        """Answers one call.

        Args:
            argument: what the model wrote, white space at both ends removed; may be empty.

        Raises:
            ToolError: if the call failed for a reason the model should read.
        """

    def cut(self, text: str, max_tokens: int, codec: TokenCodec) -> str:
        """Shortens what a call came to, an answer or a failure, in the thread that generates.

        Args:
            text: as `__call__` returned or raised it.
            max_tokens: that it may have, at least 1.
            codec: the policy's tokens.
        """
        return codec.cut(text, max_tokens)

    def call_after(self, earlier: Sequence[ToolCall], argument: str) -> str:
        """Answers a call of a trajectory; a tool that keeps something between calls overrides this.

        Args:
            earlier: calls of the same trajectory to this tool, oldest first; those of a branch's parent included.
            argument: as for a call by itself.

        Raises:
            ToolError: if the call failed for a reason the model should read.
        """
        return self(argument)

    def start(self) -> None:
        """Prepares for calls: worker processes, indexes, connections; does nothing if the tool is started."""
        return

    def stop(self) -> None:
        """Frees what `start` took; does nothing if the tool is not started."""
        return


TOOLS: Registry[Tool] = Registry("tool", group="appo.tools")


def shorten(text: str, max_chars: int) -> str:
    """Cuts a text after `max_chars` characters and says so; a text that is short enough comes back as it is."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut after {max_chars} characters]"
