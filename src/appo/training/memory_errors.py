"""Memory that is spent: what had it, and which option takes less."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.prefix_tree import PrefixTree

_OF_CPU = "DefaultCPUAllocator: can't allocate memory"
"""What torch says where the main memory is spent: a plain `RuntimeError`."""

_SAMPLING = ("appo.engines.", "appo.rollouts.agent", "appo.rollouts.async_agent", "appo.rollouts.log_prob_check")
"""Engines, and what calls them."""

_EVALUATION = "appo.policy.evaluation"
"""What a check of log-probs calls beside an engine."""


class UpdateMemoryError(MemoryError):
    """A micro-batch of an update needs more memory than there is."""


@contextmanager
def updating(micro: TrajectoryBatch, shares: bool) -> Iterator[None]:
    """Computes one micro-batch of an update.

    Args:
        micro: of the update.
        shares: whether tokens that its sequences begin with alike go through the policy once.

    Raises:
        UpdateMemoryError: if memory is spent, with the option that takes less.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_spent(error):
            raise
        num_tokens = _num_tokens(micro, shares)
        what = f"memory is spent in a micro-batch of {num_tokens:,} tokens in {len(micro)} sequences"
        if len(micro) > 1:
            longest = int(micro.lengths.max())
            advice = f"model.max_tokens_per_microbatch={max(num_tokens // 2, longest)} takes less"
        else:
            advice = (
                "a sequence is not cut, so model.max_tokens_per_microbatch takes no less: "
                f"model.gradient_checkpointing=true does, or a rollout.limits.max_response_tokens below {num_tokens}"
            )
        raise UpdateMemoryError(f"{what}; {advice}; appo plan says how much") from error


def _num_tokens(micro: TrajectoryBatch, shares: bool) -> int:
    return PrefixTree.of(micro.token_ids, micro.lengths).num_tokens if shares else int(micro.lengths.sum())


def is_spent(error: BaseException) -> bool:
    """Whether an error says that there is no memory, of a GPU or of the machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _OF_CPU in str(error)


def advice(error: BaseException, max_tokens_per_microbatch: int) -> str:
    """What takes less memory where it was spent outside of an update.

    Args:
        error: of which `is_spent` is true.
        max_tokens_per_microbatch: option of the run.
    """
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(name.startswith(_SAMPLING) for name in modules) and _EVALUATION not in modules:
        return (
            "memory is spent while the engine samples: fewer rollout.engine.max_batch_size and prefix_cache_tokens of "
            "HFEngine, or a smaller rollout.engine.gpu_memory_utilization of VLLMEngine, take less"
        )
    return (
        f"memory is spent: a model.max_tokens_per_microbatch below {max_tokens_per_microbatch} takes less, and appo "
        "plan says how much"
    )
