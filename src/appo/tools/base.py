"""What every tool offers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from appo.core.registry import Registry
from appo.core.trajectory import ToolCall

Failure = Literal["error", "timeout", "unknown", "malformed", "invalid", "unavailable", "refused"]
"""How a call failed: the tool raised, took too long, or does not exist; the call was written wrongly, or with arguments
that the tool does not take; what the tool needs is out of reach; or the call was one too many."""


_CHARS_PER_TOKEN = 16
"""More than most texts have."""


class ToolError(Exception):
    """A tool's own way of saying that a call failed; its text becomes the result that the model reads."""

    failure: ClassVar[Failure] = "error"
    """What the failure counts as."""


class ToolTimeoutError(ToolError):
    """A call failed because it outlasted the tool's own time limit."""

    failure = "timeout"


class ToolArgumentError(ToolError):
    """A call failed because the tool does not take such arguments."""

    failure = "invalid"


class ToolUnavailableError(ToolError):
    """A call failed because what the tool needs, such as a server, is out of reach; the model did nothing wrong."""

    failure = "unavailable"


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
        token_ids: Sequence[int] = ()
        length = _CHARS_PER_TOKEN * max_tokens
        # As much of a long text as it takes: a stranger's may be of any length.
        while len(token_ids) <= max_tokens:
            token_ids = self.encode(text[:length])
            if len(token_ids) <= max_tokens and length >= len(text):
                return text
            length *= 2
        beginning = self.decode(token_ids[:max_tokens])
        # Where the cut parts the bytes of a character, its first ones decode to the replacement character.
        return beginning if text.startswith(beginning) else beginning.rstrip("\N{REPLACEMENT CHARACTER}")


class ToolProvider(ABC):
    """Something that offers tools, all of them known once it is started. A tool offers itself."""

    @property
    @abstractmethod
    def tools(self) -> Sequence[Tool]:
        """What it offers; none before it is started if it has yet to ask."""

    def start(self) -> None:
        """Prepares for calls: worker processes, indexes, connections; does nothing if it is started."""
        return

    def stop(self) -> None:
        """Frees what `start` took; does nothing if it is not started."""
        return


class Tool(ToolProvider):
    """Something an agent may call in the middle of its response.

    Calls come from several threads at once. Whatever a call raises becomes the text of its result and is counted; a
    call that outlasts `timeout_s` is given up.
    """

    timeout_s: float = 30.0
    """Seconds after which a call is given up."""
    # Not annotated: the command line reads annotations of a base in the module of the tool, which may not import them.
    parameter_name = "input"
    """What call syntaxes that name arguments call the one text that the tool takes."""

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

    def call_after(self, earlier: Sequence[ToolCall], argument: str, trajectory: object = None) -> str:
        """Answers a call of a trajectory; a tool that keeps something between calls overrides this.

        Args:
            earlier: calls of the same trajectory to this tool, oldest first; those of a branch's parent included.
            argument: as for a call by itself.
            trajectory: whose call it is, the same object for all calls of one trajectory and for no other, a branch and
                its parent being two; None if that is not known.

        Raises:
            ToolError: if the call failed for a reason the model should read.
        """
        return self(argument)

    @property
    def description(self) -> str:
        """What the tool does, in words for the model; by default the first paragraph of the class's docstring."""
        return " ".join((inspect.getdoc(type(self)) or "").partition("\n\n")[0].split())

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of the arguments, an object; by default one text."""
        name = self.parameter_name
        return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def to_text(self, arguments: Mapping[str, Any]) -> str:
        """What `__call__` is given for named arguments.

        Raises:
            ToolArgumentError: if they do not fit `parameters`.
        """
        text = arguments.get(self.parameter_name)
        if len(arguments) != 1 or not isinstance(text, str):
            raise ToolArgumentError(
                f"Error: {self.name} takes one argument, the text {self.parameter_name!r}, got {dict(arguments)}"
            )
        return text.strip()

    @property
    def tools(self) -> Sequence[Tool]:
        return (self,)


TOOLS: Registry[ToolProvider] = Registry("tool", group="appo.tools")
"""Tools by class name, those of plug-ins included."""


def shorten(text: str, max_chars: int) -> str:
    """Cuts a text after `max_chars` characters and says so; a text that is short enough comes back as it is."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut after {max_chars} characters]"
