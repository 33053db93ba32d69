"""How much memory a run takes on every GPU, before it starts."""

from appo.planning.advice import advice, gpus_needed
from appo.planning.command import describe, plan_of_run, policy_config
from appo.planning.memory import (
    Precision,
    cache_bytes,
    layer_activations,
    log_prob_buffers,
    step_activations,
    step_workspace,
    weight_casts,
)
from appo.planning.plan import (
    PHASES,
    RUNTIME_BYTES,
    EnginePlan,
    MemoryItem,
    MemoryPlan,
    RunPlan,
    plan_memory,
)
from appo.planning.shapes import SHAPES
from appo.planning.size import PolicySize

__all__ = [
    "PHASES",
    "RUNTIME_BYTES",
    "SHAPES",
    "EnginePlan",
    "MemoryItem",
    "MemoryPlan",
    "PolicySize",
    "Precision",
    "RunPlan",
    "advice",
    "cache_bytes",
    "describe",
    "gpus_needed",
    "layer_activations",
    "log_prob_buffers",
    "plan_memory",
    "plan_of_run",
    "policy_config",
    "step_activations",
    "step_workspace",
    "weight_casts",
]
