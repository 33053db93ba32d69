"""What to change where a run takes too much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations

from appo.commands.plan.plan import plan_memory
from appo.commands.plan.settings import RunSettings
from appo.commands.plan.size import PolicySize

Change = Callable[[RunSettings], RunSettings]

_MOST_GPUS = 4096


def advice(size: PolicySize, run: RunSettings) -> list[str] | None:
    """Finds the fewest changes with which a run fits, each as what to set; None if none of them does.

    Args:
        size: of the policy.
        run: settings that may not fit.
    """
    changes = list(_changes(size, run))
    for number in range(len(changes) + 1):
        for chosen in combinations(changes, number):
            changed = run
            for _, change in chosen:
                changed = change(changed)
            if plan_memory(size, changed).fits:
                return [text for text, _ in chosen]
    return None


def gpus_needed(size: PolicySize, run: RunSettings) -> tuple[int, list[str]] | None:
    """Finds the smallest number of GPUs, doubling the present one, on which a run fits in shards, and its changes.

    Tensor-parallel groups keep their size.

    Args:
        size: of the policy.
        run: settings that do not fit.

    Returns:
        None if 4,096 are too few.
    """
    num_gpus = 2 * run.num_gpus
    while num_gpus <= _MOST_GPUS:
        changes = advice(size, replace(run, num_gpus=num_gpus, strategy="fsdp"))
        if changes is not None:
            return num_gpus, changes
        num_gpus *= 2
    return None


def _changes(size: PolicySize, run: RunSettings) -> Iterator[tuple[str, Change]]:
    """Lists what may be set, the cheapest first."""
    if run.engine.kind == "vllm" and not run.engine.sleeps:
        yield (
            "rollout.engine.sleep_level=2",
            lambda run: replace(run, engine=replace(run.engine, sleeps=True)),
        )
    if not run.checkpointing:
        yield "model.gradient_checkpointing=true", lambda run: replace(run, checkpointing=True)
    if run.strategy != "fsdp" and run.num_gpus > 1:
        yield "trainer.strategy=fsdp2", lambda run: replace(run, strategy="fsdp")
    if run.micro_batch_tokens > run.longest_sequence:
        yield (
            f"model.max_tokens_per_microbatch={run.longest_sequence}",
            lambda run: replace(run, micro_batch_tokens=run.longest_sequence),
        )
    if run.engine.kind == "vllm" and run.engine.cache_bytes is None:
        for share in (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
            if share != run.engine.memory_share:
                yield f"rollout.engine.gpu_memory_utilization={share}", partial(_with_memory_share, share)


def _with_memory_share(share: float, run: RunSettings) -> RunSettings:
    return replace(run, engine=replace(run.engine, memory_share=share))
