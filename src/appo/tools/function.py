"""A user's own function as a tool."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from appo.core.functions import as_function
from appo.tools.base import TOOLS, ToolProvider
from appo.tools.schema import SchemaTool


@TOOLS.register
class FunctionTool(SchemaTool):
    """Calls a function whose signature and docstring tell the model what it does and takes.

    Every parameter has a type hint and stands in the docstring, which follows Google style. What it returns is the
    result, as JSON unless it is a text. It is called from several threads at once.

    Args:
        function: import path ``package.module:name``; in Python, the function itself will do.
        timeout_s: seconds after which a call is given up.

    Raises:
        ValueError: if the function cannot be described, or an option is out of range.
    """

    def __init__(self, function: str | Callable[..., Any], timeout_s: float = 30.0) -> None:
        if not 0.0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive and finite, got {timeout_s}")
        self.timeout_s = timeout_s
        self._function = as_function(function)
        schema = _schema(self._function)
        parameters = {**schema["parameters"], "additionalProperties": False}
        super().__init__(schema["name"], schema["description"], parameters)

    def call(self, arguments: dict[str, Any]) -> str:
        result = self._function(**arguments)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def as_tool(tool: ToolProvider | Callable[..., Any]) -> ToolProvider:
    """The tool; a plain function becomes one.

    Args:
        tool: a tool, or a function with type hints and a docstring.

    Raises:
        ValueError: if it is neither, or the function cannot be described.
    """
    return tool if isinstance(tool, ToolProvider) else FunctionTool(tool)


def _schema(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Name, description and parameters of a function, as chat templates take them.

    Raises:
        ValueError: if one of them is missing.
    """
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ValueError(f"function must have a name that the model can write, got {function!r}")
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if unnamed := [str(p) for p in inspect.signature(function).parameters.values() if p.kind not in by_name]:
        raise ValueError(f"function must take every argument by name, got {unnamed[0]} of {name}")
    try:
        schema: Mapping[str, Any] = get_json_schema(function)["function"]
    except (DocstringParsingException, TypeHintParsingException, NameError, ValueError) as error:
        raise ValueError(
            f"function must have a docstring and a type hint for every argument, got {name}: {error}"
        ) from error
    return schema
