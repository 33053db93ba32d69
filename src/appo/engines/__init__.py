"""Who samples."""

from appo.engines.base import ENGINES, Completion, Engine, Request, SamplingParams
from appo.engines.hf import HFEngine

__all__ = ["ENGINES", "Completion", "Engine", "HFEngine", "Request", "SamplingParams"]
