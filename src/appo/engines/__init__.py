"""Who samples."""

from appo.engines.base import ENGINES, Completion, Engine, Request, SamplingParams
from appo.engines.hf import HFEngine
from appo.engines.vllm import VLLMEngine
from appo.engines.vllm_server import VLLMServerEngine

__all__ = ["ENGINES", "Completion", "Engine", "HFEngine", "Request", "SamplingParams", "VLLMEngine", "VLLMServerEngine"]
