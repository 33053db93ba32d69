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
from appo.tools.mcp_tools import MCPTool, MCPTools
from appo.tools.passage_index import Hit
from appo.tools.python import PythonTool
from appo.tools.runner import ToolAnswer, ToolRunner
from appo.tools.search import SEARCH_BACKENDS, SearchBackend, SearchTool
from appo.tools.search_bm25 import BM25Search
from appo.tools.search_cache import CachedSearch
from appo.tools.search_http import HTTPSearch
from appo.tools.syntax import CALL_SYNTAXES, CallSyntax, ParsedCall, RenderChat, TagSyntax

__all__ = [
    "CALL_SYNTAXES",
    "SEARCH_BACKENDS",
    "TOOLS",
    "BM25Search",
    "CachedSearch",
    "CallSyntax",
    "ChatTemplateSyntax",
    "Failure",
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
]
