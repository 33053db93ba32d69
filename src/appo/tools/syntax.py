"""How a call and its result look in text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ParsedCall:
    """A call as the model wrote it.

    Attributes:
        tool: name of the tool addressed.
        argument: what was passed, white space at both ends removed; may be empty.
        end: index just past the call in the text it was found in.
    """

    tool: str
    argument: str
    end: int


class CallSyntax(ABC):
    """Finds tool calls in generated text and wraps their results."""

    @abstractmethod
    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        """The strings that end a call to one of the tools named."""

    @abstractmethod
    def parse(self, text: str, tools: Sequence[str]) -> ParsedCall | None:
        """The first complete call in what the model generated in one turn; None if there is none."""

    @abstractmethod
    def format_result(self, result: str) -> str:
        """A tool's answer as it goes into the context."""


@dataclass(frozen=True)
class TagSyntax(CallSyntax):
    """Calls in tags named after the tool: ``<python>1 + 1</python>`` is answered by `result_format`.

    The defaults are those of the authors' release.
    """

    result_format: str = " <result>\n{result}\n</result>"
    """Text around a result; ``{result}`` stands for what the tool answered."""

    def __post_init__(self) -> None:
        if "{result}" not in self.result_format:
            raise ValueError(f"result_format must contain {{result}}, got {self.result_format!r}")

    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"</{tool}>" for tool in tools)

    def parse(self, text: str, tools: Sequence[str]) -> ParsedCall | None:
        found: ParsedCall | None = None
        for tool in tools:
            closing = f"</{tool}>"
            end = text.find(closing)
            start = text.rfind(f"<{tool}>", 0, max(end, 0))
            if end < 0 or start < 0:
                continue
            if found is None or end + len(closing) < found.end:
                found = ParsedCall(tool, text[start + len(tool) + 2 : end].strip(), end + len(closing))
        return found

    def format_result(self, result: str) -> str:
        return self.result_format.replace("{result}", result)
