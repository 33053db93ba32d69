"""What an agent may call, how a call is written, and how calls are run."""

from appo.tools.base import (
    TOOLS,
    Failure,
    TokenCodec,
    Tool,
    ToolArgumentError,
    ToolError,
    ToolProvider,
    ToolTimeoutError,
    ToolUnavailableError,
)
from appo.tools.chat_syntax import ChatTemplateSyntax
from appo.tools.function import FunctionTool, as_tool
from appo.tools.mcp.tools import MCPTool, MCPTools
from appo.tools.python.tool import PythonTool
from appo.tools.runner import ToolAnswer, ToolRunner
from appo.tools.search.bm25 import BM25Search
from appo.tools.search.cache import CachedSearch
from appo.tools.search.http import HTTPSearch
from appo.tools.search.index import Hit
from appo.tools.search.tool import SEARCH_BACKENDS, SearchBackend, SearchTool
from appo.tools.tag_syntax import CALL_SYNTAXES, CallSyntax, ParsedCall, RenderChat, TagSyntax

__all__ = [
    "CALL_SYNTAXES",
    "SEARCH_BACKENDS",
    "TOOLS",
    "BM25Search",
    "CachedSearch",
    "CallSyntax",
    "ChatTemplateSyntax",
    "Failure",
    "FunctionTool",
    "HTTPSearch",
    "Hit",
    "MCPTool",
    "MCPTools",
    "ParsedCall",
    "PythonTool",
    "RenderChat",
    "SearchBackend",
    "SearchTool",
    "TagSyntax",
    "TokenCodec",
    "Tool",
    "ToolAnswer",
    "ToolArgumentError",
    "ToolError",
    "ToolProvider",
    "ToolRunner",
    "ToolTimeoutError",
    "ToolUnavailableError",
    "as_tool",
]
