"""The memory sums of ``docs/scale.md``; ``python -m benchmarks.scale_tables docs/scale.md`` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill

from transformers import AutoConfig

from appo.commands.plan.command import verdict
from appo.commands.plan.plan import PHASES, MemoryPlan, plan_memory
from appo.commands.plan.settings import GIB, EngineSettings, Precision, RunSettings
from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize

PROMPT_TOKENS, RESPONSE_TOKENS, MICRO_BATCH_TOKENS = 2048, 8192, 16384

ENGINES: dict[tuple[str, int], tuple[int, float]] = {
    ("Qwen2.5-7B", 8): (1, 0.5),
    ("Qwen2.5-7B", 64): (1, 0.7),
    ("Qwen2.5-14B", 8): (2, 0.5),
    ("Qwen2.5-14B", 64): (2, 0.7),
    ("Llama-3.1-70B", 8): (8, 0.4),
    ("Llama-3.1-70B", 64): (8, 0.5),
}
"""`tensor_parallel_size` and `gpu_memory_utilization` of the engine, by model and number of GPUs."""


LARGEST = ("Llama-3.1-70B", 64)

LONG_RESPONSE_TOKENS = 30720


def scale_plan(
    model: str, num_gpus: int, tensor_parallel_size: int = 1, response_tokens: int = RESPONSE_TOKENS
) -> MemoryPlan:
    """The plan for a public model on GPUs of 80 GiB, with the settings that the page recommends.

    Args:
        model: key of `SHAPES`.
        num_gpus: 8 or 64.
        tensor_parallel_size: of the trainer.
        response_tokens: of the longest response; a micro-batch has room for a trajectory with it.
    """
    tensor_parallel, memory_share = ENGINES[model, num_gpus]
    run = RunSettings(
        num_gpus=num_gpus,
        strategy="fsdp",
        tensor_parallel=tensor_parallel_size,
        precision=Precision(weight=4, compute=2, residual=2),
        foreach=False,
        checkpointing=True,
        micro_batch_tokens=max(MICRO_BATCH_TOKENS, PROMPT_TOKENS + response_tokens),
        prompt_tokens=PROMPT_TOKENS,
        response_tokens=response_tokens,
        engine=EngineSettings("vllm", tensor_parallel=tensor_parallel, memory_share=memory_share),
    )
    return plan_memory(PolicySize.of_config(AutoConfig.for_model(**SHAPES[model])), run)


def scale_tables() -> str:
    """Settings and memory of every model and number of GPUs, as Markdown."""
    plans = {key: scale_plan(*key) for key in ENGINES}
    rows = [
        ["GiB on every GPU", *(f"{model}, {num_gpus} GPUs" for model, num_gpus in plans)],
        ["---", *("---:" for _ in plans)],
        ["`rollout.engine.tensor_parallel_size`", *(str(tensor_parallel) for tensor_parallel, _ in ENGINES.values())],
        ["`rollout.engine.gpu_memory_utilization`", *(str(share) for _, share in ENGINES.values())],
        *_memory_rows(list(plans.values())),
        [
            "trajectories at once in the cache of an engine",
            *(f"{plan.cache_trajectories:,}" for plan in plans.values()),
        ],
        ["engines", *(str(num_gpus // tensor_parallel) for (_, num_gpus), (tensor_parallel, _) in ENGINES.items())],
    ]
    refused = "\n".join(
        fill(f"- {model} on {num_gpus} GPUs {'; '.join(verdict(plan)[:2])}.", width=120, subsequent_indent="  ")
        for (model, num_gpus), plan in plans.items()
        if not plan.fits
    )
    return f"{_table(rows)}\n\n{refused}" if refused else _table(rows)


def tensor_parallel_tables() -> str:
    """Memory of the largest model with and without tensor parallelism, for shorter and longer responses."""
    columns = [(size, tokens) for tokens in (RESPONSE_TOKENS, LONG_RESPONSE_TOKENS) for size in (1, 8)]
    plans = [scale_plan(*LARGEST, size, tokens) for size, tokens in columns]
    rows = [
        ["GiB on every GPU", *("`fsdp2`" if size == 1 else f"{size} GPUs a layer" for size, _ in columns)],
        ["---", *("---:" for _ in columns)],
        ["`rollout.limits.max_response_tokens`", *(f"{tokens:,}" for _, tokens in columns)],
        ["`model.max_tokens_per_microbatch`", *(f"{plan.run.micro_batch_tokens:,}" for plan in plans)],
        *_memory_rows(plans),
    ]
    return _table(rows)


def _memory_rows(plans: Sequence[MemoryPlan]) -> list[list[str]]:
    names = dict.fromkeys(item.name for plan in plans for item in plan.items if item.num_bytes)
    return [
        *([name, *(_bytes_of(plan, name) for plan in plans)] for name in names),
        *([f"**all while {phase}**", *(f"{plan.total(phase) / GIB:.1f}" for plan in plans)] for phase in PHASES),
        ["fits", *("yes" if plan.fits else "no" for plan in plans)],
    ]


def _table(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _bytes_of(plan: MemoryPlan, name: str) -> str:
    return f"{sum(item.num_bytes for item in plan.items if item.name == name) / GIB:.1f}"


def insert_tables(page: str) -> str:
    """The page with its tables as they are now."""
    for name, tables in (("tables", scale_tables), ("tensor parallelism", tensor_parallel_tables)):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, _, rest = page.partition(begin)
        _, _, tail = rest.partition(end)
        page = f"{head}{begin}\n\n{tables()}\n\n{end}{tail}"
    return page


def main() -> None:
    """Writes the tables into the page that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(insert_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
