"""What an agent may call, how a call is written, and how calls are run."""

from appo.tools.base import TOOLS, TokenCodec, Tool, ToolError, ToolTimeoutError
from appo.tools.passage_index import Hit
from appo.tools.python import PythonTool
from appo.tools.runner import ToolAnswer, ToolRunner
from appo.tools.search import SEARCH_BACKENDS, SearchBackend, SearchTool
from appo.tools.search_bm25 import BM25Search
from appo.tools.search_cache import CachedSearch
from appo.tools.search_http import HTTPSearch
from appo.tools.syntax import CALL_SYNTAXES, CallSyntax, ParsedCall, TagSyntax

__all__ = [
    "CALL_SYNTAXES",
    "SEARCH_BACKENDS",
    "TOOLS",
    "BM25Search",
    "CachedSearch",
    "CallSyntax",
    "HTTPSearch",
    "Hit",
    "ParsedCall",
    "PythonTool",
    "SearchBackend",
    "SearchTool",
    "TagSyntax",
    "TokenCodec",
    "Tool",
    "ToolAnswer",
    "ToolError",
    "ToolRunner",
    "ToolTimeoutError",
]
