"""How a call and its result look in text."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from appo.registry import Registry


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


CALL_SYNTAXES: Registry[CallSyntax] = Registry("call syntax", group="appo.call_syntaxes")


@CALL_SYNTAXES.register
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
        if not tools:
            return None
        for closing in re.finditer(f"</({'|'.join(map(re.escape, tools))})>", text):
            opening = f"<{closing[1]}>"
            # The nearest one: an earlier one may be a mention of the tool in a thought.
            start = text.rfind(opening, 0, closing.start())
            if start >= 0:
                return ParsedCall(closing[1], text[start + len(opening) : closing.start()].strip(), closing.end())
        return None

    def format_result(self, result: str) -> str:
        return self.result_format.replace("{result}", result)
