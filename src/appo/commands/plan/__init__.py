"""How much memory a run takes on every GPU, before it starts."""

from appo.commands.plan.advice import advice, gpus_needed
from appo.commands.plan.command import describe, plan_of_run, policy_config
from appo.commands.plan.memory import (
    Precision,
    cache_bytes,
    layer_activations,
    log_prob_buffers,
    step_activations,
    step_workspace,
    weight_casts,
)
from appo.commands.plan.plan import PHASES, RUNTIME_BYTES, EnginePlan, MemoryItem, MemoryPlan, RunPlan, plan_memory
from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize

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
