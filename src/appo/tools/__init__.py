"""What an agent may call, how a call is written, and how calls are run."""

from appo.tools.base import TOOLS, Tool, ToolError, ToolTimeoutError
from appo.tools.python import PythonTool
from appo.tools.runner import ToolAnswer, ToolRunner
from appo.tools.search import SEARCH_BACKENDS, SearchBackend, SearchTool
from appo.tools.syntax import CALL_SYNTAXES, CallSyntax, ParsedCall, TagSyntax

__all__ = [
    "CALL_SYNTAXES",
    "SEARCH_BACKENDS",
    "TOOLS",
    "CallSyntax",
    "ParsedCall",
    "PythonTool",
    "SearchBackend",
    "SearchTool",
    "TagSyntax",
    "Tool",
    "ToolAnswer",
    "ToolError",
    "ToolRunner",
    "ToolTimeoutError",
]
