"""How calls and their results look in text."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appo.core.registry import Registry
from appo.tools.schema import text_parameter

RenderChat = Callable[..., str]
"""The policy's chat template: takes messages, and as keywords `add_generation_prompt` and options of the template."""


@dataclass(frozen=True)
class ParsedCall:
    """A call as the model wrote it.

    Attributes:
        tool: name of the tool addressed; empty if a malformed call names none.
        argument: what was passed, white space at both ends removed; may be empty.
        end: index just past the call in the text it was found in.
        arguments: what was passed by name, in a syntax that names arguments; `argument` is their text then.
        error: what is wrong with how the call is written, in words for the model; such a call is not run.
    """

    tool: str
    argument: str
    end: int
    arguments: Mapping[str, Any] | None = None
    error: str | None = None


class CallSyntax(ABC):
    """Finds tool calls in generated text and puts their results into words of the context."""

    # Without an annotation, or the command line would take it for an option.
    describes_tools = False
    """Whether prompts must describe the tools, through ``tools=`` of the chat template."""

    def describe(self, schemas: Sequence[Mapping[str, Any]], conversation: str) -> str:
        """What a prompt says of tools in words; empty if it says nothing, or the chat template describes them.

        Args:
            schemas: of the tools, as `Tool.schema`.
            conversation: all that the prompt says already.
        """
        return ""

    @property
    def thought_tags(self) -> tuple[str, ...]:
        """What opens a thought; a chat template may write it in place of the model."""
        return ("<think>",)

    @abstractmethod
    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        """The strings that end a call to one of the tools named; none if calls are complete when the turn is."""

    @abstractmethod
    def parse(self, text: str, tools: Sequence[str], limit: int) -> tuple[ParsedCall, ...]:
        """The calls to run next, in order, of what the model generated in one turn; none if there is no complete one.

        Takes time and memory in proportion to the text, and keeps of a call that is written wrongly only its beginning:
        models that degenerate repeat a tag to the end.

        Args:
            text: of the turn so far, special tokens included; of the whole turn where there are no stop strings.
            tools: names of the tools there are, at least one.
            limit: calls that may be of use; further ones need not be found.
        """

    @abstractmethod
    def format_results(self, results: Sequence[str], turn: str, render: RenderChat) -> str:
        """The tools' answers as they go into the context, up to where the model goes on.

        Args:
            results: in the order of the calls, at least one.
            turn: text of the turn that called, special tokens included.
            render: the policy's chat template.
        """


_INSTRUCTIONS = """\
You can call tools in the middle of your answer: write what a tool takes between its tags, and stop there. What it \
returns follows as {result}, and you go on from there. You can call tools as often as you need them.
{tools}"""

_OTHER_TOOLS = (
    "python", "search", "tool_call", "tool", "function", "function_call", "code_interpreter", "interpreter", "bash",
    "shell", "sql", "calculator", "browser", "browse", "web_search", "google", "wiki", "wikipedia", "visit", "fetch",
    "open_url", "click", "retrieve", "lookup",
)  # fmt: skip

CALL_SYNTAXES: Registry[CallSyntax] = Registry("call syntax", group="appo.call_syntaxes")
"""Call syntaxes by class name, those of plug-ins included."""


@CALL_SYNTAXES.register
@dataclass(frozen=True)
class TagSyntax(CallSyntax):
    """Calls in tags named after the tool: ``<python>1 + 1</python>`` is answered by `result_format`, in the same turn.

    The defaults are those of the authors' release.
    """

    result_format: str = " <result>\n{result}\n</result>"
    """Text around a result; ``{result}`` stands for what the tool answered."""

    instructions: str | None = _INSTRUCTIONS
    """What is put behind the system message of every prompt; ``{tools}`` stands for a line a tool, ``{result}`` for how
    a result looks. A tool whose tag the prompt holds already is left out, and nothing is added where all are. `null`:
    nothing is ever added."""

    other_tools: tuple[str, ...] = _OTHER_TOOLS
    """Names whose tags are calls where there is no such tool, which is answered with those that there are. So are tags
    of any other name behind which the policy makes up a result."""

    def __post_init__(self) -> None:
        if "{result}" not in self.result_format:
            raise ValueError(f"result_format must contain {{result}}, got {self.result_format!r}")
        if self.instructions is not None and "{tools}" not in self.instructions:
            raise ValueError(f"instructions must contain {{tools}}, got {self.instructions!r}")

    def describe(self, schemas: Sequence[Mapping[str, Any]], conversation: str) -> str:
        functions = [schema["function"] for schema in schemas]
        unnamed = [function for function in functions if f"<{function['name']}>" not in conversation]
        if self.instructions is None or not unnamed:
            return ""
        lines = {"{tools}": "\n".join(map(_described, unnamed)), "{result}": self.format_result("...").strip()}
        # In one go: what stands for one may hold the mark of the other.
        return re.sub(r"\{(?:tools|result)\}", lambda mark: lines[mark[0]], self.instructions)

    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"</{tool}>" for tool in tools)

    def parse(self, text: str, tools: Sequence[str], limit: int) -> tuple[ParsedCall, ...]:
        names = "|".join(map(re.escape, tools))
        # The nearest tag that opens: an earlier one may be a mention of the tool in a thought.
        opened: dict[str, re.Match[str]] = {}
        unknown: list[tuple[re.Match[str], re.Match[str]]] = []
        for tag in re.finditer(rf"<(/?)({names}|[A-Za-z_][\w.-]*)>", text):
            opening = opened.get(tag[2])
            if not tag[1]:
                opened[tag[2]] = tag
            elif opening is None:
                continue
            elif tag[2] in tools:
                # What looks like a call within this one is a part of what is passed.
                first = next((pair for pair in unknown if pair[1].end() <= opening.start()), (opening, tag))
                return (_call(text, *first),)
            elif self._calls_a_stranger(text, tag, tools):
                unknown.append((opening, tag))
        begun = min((opened[tool].start() for tool in tools if tool in opened), default=len(text))
        return tuple(_call(text, *pair) for pair in unknown[:1] if pair[1].end() <= begun)

    def _calls_a_stranger(self, text: str, closing: re.Match[str], tools: Sequence[str]) -> bool:
        """Whether a tag that closes ends the call of a tool that does not exist."""
        if closing[2].casefold() in map(str.casefold, (*self.other_tools, *tools)):
            return True
        shown = self.result_format.partition("{result}")[0].strip()
        if not shown or f"<{closing[2]}>" in (*self.thought_tags, "<answer>", shown):
            return False
        return re.compile(rf"\s*{re.escape(shown)}").match(text, closing.end()) is not None

    def format_results(self, results: Sequence[str], turn: str, render: RenderChat) -> str:
        return "".join(map(self.format_result, results))

    def format_result(self, result: str) -> str:
        """One answer in its tags."""
        return self.result_format.replace("{result}", result)


def _call(text: str, opening: re.Match[str], closing: re.Match[str]) -> ParsedCall:
    return ParsedCall(opening[2], text[opening.end() : closing.start()].strip(), closing.end())


def _described(function: Mapping[str, Any]) -> str:
    """One tool: how a call of it is written, what it does and what it takes."""
    name, does, parameters = function["name"], function.get("description", ""), function["parameters"]
    taken = parameters.get("properties", {})
    if (text := text_parameter(parameters)) is not None:
        what = taken[text].get("description", "")
        return f"<{name}>{text}</{name}>: {does}{f' {text}: {what}' if what else ''}"
    call = f"<{name}>{{{', '.join(f'{json.dumps(key)}: ...' for key in taken)}}}</{name}>"
    schema = json.dumps(parameters, ensure_ascii=False)
    return f"{call}: {does} It takes a JSON object of the schema {schema}"
