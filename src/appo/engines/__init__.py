"""Who samples."""

from appo.engines.base import ENGINES, Completion, Engine, Request, SamplingParams
from appo.engines.hf.engine import HFEngine
from appo.engines.vllm.engine import VLLMEngine
from appo.engines.vllm_server.engine import VLLMServerEngine

__all__ = ["ENGINES", "Completion", "Engine", "HFEngine", "Request", "SamplingParams", "VLLMEngine", "VLLMServerEngine"]
