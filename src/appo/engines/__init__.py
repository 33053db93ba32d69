"""Who samples; an engine is imported when it is asked for, since each brings large packages along."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from appo.engines.base import ENGINES, Completion, Engine, LostUpdateError, Request, SamplingParams

if TYPE_CHECKING:
    from appo.engines.hf.engine import HFEngine
    from appo.engines.vllm.engine import VLLMEngine
    from appo.engines.vllm_server.engine import VLLMServerEngine

__all__ = [
    "ENGINES",
    "Completion",
    "Engine",
    "HFEngine",
    "LostUpdateError",
    "Request",
    "SamplingParams",
    "VLLMEngine",
    "VLLMServerEngine",
]

_MODULES = {
    "HFEngine": "appo.engines.hf.engine",
    "VLLMEngine": "appo.engines.vllm.engine",
    "VLLMServerEngine": "appo.engines.vllm_server.engine",
}
ENGINES.expect(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
