"""Measures an optimizer step on a CPU: its speed on a ragged batch, and the memory it takes above the model.

- `speed`: tokens a second of a step of `APPOModule` (log-probs, clipped loss, backward, clipping, AdamW) on 16 rows of
  64 to 512 tokens and a random Qwen2 of 20 million parameters, against the bare model: forward and backward of the sum
  of its logits, on the same rows sorted and cut to length, at the best of several sizes of its batches. And, where
  ``trl`` can be imported, against a step of its ``GRPOTrainer`` on the same rows, at the best of several batch sizes;
  it is handed rows and advantages, so that nothing else is timed.
- `memory`: largest resident memory above the model of one step on a row of 4,096 tokens with a vocabulary of 151,936,
  against the same step by the definition, from all logits.

Each side has a process of its own. Those of `speed` take turns; the figure is the median over rounds, of seconds on the
clock and of processor seconds, which also mean something on a machine that others use.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_NUM_ROWS = 16
_PROMPT_LENGTH = 32
_SPEED_SIZES = {"vocab_size": 32_000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
_MEMORY_SIZES = {"vocab_size": 151_936, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2}
_MEMORY_LENGTH = 4096
_BARE_TOKENS = (512, 1024)
_STEP_TOKENS = (1024, 8192)
_TRL_ROWS = (1, 4)


def make_policy(folder: Path, sizes: dict[str, int]) -> None:
    """Saves a random Qwen2 with tied embeddings."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        **sizes,
        num_attention_heads=sizes["hidden_size"] // 64,
        num_key_value_heads=2,
        max_position_embeddings=_MEMORY_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


class Clock:
    """Seconds since it was made, on the clock and of this process on its processors."""

    def __init__(self) -> None:
        self.begin = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        """Both."""
        return time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]


def make_rows(lengths: list[int], vocab_size: int) -> Any:
    """A training batch of random tokens: a prompt, then tokens that are trained to the end."""
    import torch

    from appo.core.collate import make_batch

    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), max(lengths))
    position, length = torch.arange(shape[1]), torch.tensor(lengths)
    is_token = position < length.unsqueeze(-1)
    mask = is_token & (position >= _PROMPT_LENGTH)
    advantages = torch.randn(len(lengths), 1, generator=generator)
    return make_batch(
        token_ids=torch.randint(1, vocab_size, shape, generator=generator) * is_token,
        lengths=length,
        response_mask=mask,
        behavior_log_probs=-10.4 * mask,
        advantages=advantages * mask,
    )


def ragged_rows() -> Any:
    """The rows of `speed`: lengths spread evenly, in no order."""
    import torch

    lengths = torch.linspace(64, 512, _NUM_ROWS).round().int()
    order = torch.randperm(_NUM_ROWS, generator=torch.Generator().manual_seed(0))
    return make_rows(lengths[order].tolist(), _SPEED_SIZES["vocab_size"])


def serve_bare(pipe: Connection, policy: str, threads: int) -> None:
    """Forward and backward of the model and nothing else; answers every size it is sent with seconds."""
    limit_threads(threads)
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(policy).train(), ragged_rows()
    order = rows.lengths.argsort(descending=True)
    while (max_tokens := pipe.recv()) is not None:
        clock = Clock()
        start = 0
        while start < _NUM_ROWS:
            width = int(rows.lengths[order[start]])
            part = order[start : start + max(1, max_tokens // width)]
            model(input_ids=rows.token_ids[part, :width], use_cache=False).logits.sum().backward()
            start += len(part)
        pipe.send(clock.read())
        model.zero_grad(set_to_none=True)


def serve_step(pipe: Connection, policy: str, threads: int) -> None:
    """A fit of `APPOModule` whose batches come whenever a size is sent; answers with the seconds of a step."""
    limit_threads(threads)
    import lightning as L
    from torch.utils.data import DataLoader, IterableDataset

    module, rows = _module(policy), ragged_rows()

    class Rows(IterableDataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10**9

        def __iter__(self) -> Iterator[Any]:
            while (max_tokens := pipe.recv()) is not None:
                module.max_tokens_per_microbatch = max_tokens
                yield rows

    class Timing(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.clock = Clock()

        def on_train_batch_end(self, *_: Any) -> None:
            pipe.send(self.clock.read())

    _trainer(Timing()).fit(module, DataLoader(Rows(), batch_size=None))


def serve_trl(pipe: Connection, policy: str, threads: int) -> None:
    """Fits of a ``GRPOTrainer`` of one step each, on rows it is handed; answers with the seconds of the step."""
    limit_threads(threads)
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(policy), ragged_rows()
    trainers = {rows_at_once: _grpo_trainer(model, rows, rows_at_once) for rows_at_once in _TRL_ROWS}
    while (rows_at_once := pipe.recv()) is not None:
        trainer, timing = trainers[rows_at_once]
        trainer.train()
        pipe.send(timing.seconds)


def _grpo_trainer(model: Any, rows: Any, rows_at_once: int) -> tuple[Any, Any]:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    prompt, response = rows.token_ids[:, :_PROMPT_LENGTH], rows.token_ids[:, _PROMPT_LENGTH:]
    mask = rows.response_mask[:, _PROMPT_LENGTH:].long()
    given = {
        "prompt_ids": prompt,
        "prompt_mask": prompt.new_ones(prompt.shape),
        "completion_ids": response,
        "completion_mask": mask,
        "advantages": rows.advantages.sum(-1) / mask.sum(-1),
        "num_items_in_batch": mask.sum(),
    }

    class GivenRows(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            return dict(given)

    class Timing(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.clock = Clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = self.clock.read()

    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=_NUM_ROWS // rows_at_once,
        num_generations=_NUM_ROWS,
        max_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GivenRows(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=options,
        train_dataset=Dataset.from_dict({"prompt": ["?"] * _NUM_ROWS}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "?": 1}, unk_token="?")),
            pad_token="<pad>",
            eos_token="<pad>",
        ),
    )
    timing = Timing()
    trainer.add_callback(timing)
    return trainer, timing


def measure_speed(policy: str, rounds: int, threads: int) -> dict[str, float]:
    """All sides and sizes in turn, after one round that does not count."""
    sides: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
        "step": (serve_step, _STEP_TOKENS),
        "bare": (serve_bare, _BARE_TOKENS),
    }
    if importlib.util.find_spec("trl"):
        sides["trl"] = (serve_trl, _TRL_ROWS)
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side, (serve, _) in sides.items():
        pipes[side], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, policy, threads), daemon=True))
        processes[-1].start()
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {
        (side, size): [] for side, (_, sizes) in sides.items() for size in sizes
    }
    for number in range(rounds + 1):
        for (side, size), taken in seconds.items():
            pipes[side].send(size)
            answer = pipes[side].recv()
            if number:
                taken.append(answer)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    rows = ragged_rows()
    num_tokens = int(rows.lengths.sum())
    results = {"tokens": num_tokens, "trained_share": float(rows.response_mask.sum()) / num_tokens}
    for i, unit in enumerate(("s", "cpu_s")):
        medians = {key: statistics.median(both[i] for both in taken) for key, taken in seconds.items()}
        best = {side: min(value for (name, _), value in medians.items() if name == side) for side in sides}
        results |= {f"{side}_{size}_{unit}": value for (side, size), value in medians.items()}
        results |= {f"{side} / step, {unit}": best[side] / best["step"] for side in sides if side != "step"}
    return results


def step_memory(policy: str, threads: int) -> int:
    """Bytes above the model at the peak of one step of `APPOModule`."""
    limit_threads(threads)
    import lightning as L
    from torch.utils.data import DataLoader

    module, rows = _module(policy), make_rows([_MEMORY_LENGTH], _MEMORY_SIZES["vocab_size"])

    class Meter(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.before = reset_peak_memory()

        def on_train_batch_end(self, *_: Any) -> None:
            self.extra = peak_memory() - self.before

    meter = Meter()
    _trainer(meter).fit(module, DataLoader([rows], batch_size=None))
    assert module.policy_version == 1
    return meter.extra


def plain_memory(policy: str, threads: int) -> int:
    """The same of a step by the definition."""
    limit_threads(threads)
    import torch
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(policy).train(), make_rows([_MEMORY_LENGTH], 151_936)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    before = reset_peak_memory()
    logits = model(input_ids=rows.token_ids, use_cache=False).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(-1, rows.token_ids[:, 1:, None])[..., 0]
    mask, advantages = rows.response_mask[:, 1:], rows.advantages[:, 1:]
    ratio = (log_probs - log_probs.detach()).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[mask].mean()
    loss.backward()
    del logits, log_probs, ratio
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return peak_memory() - before


def _module(policy: str) -> Any:
    import torch

    from appo.losses import ClippedLoss
    from appo.training.module import APPOModule

    return APPOModule(
        policy, ClippedLoss(), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    )


def _trainer(callback: Any) -> Any:
    import lightning as L

    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )


def reset_peak_memory() -> int:
    """Makes the memory in use the peak, and returns it, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """Largest resident memory of this process since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def limit_threads(threads: int) -> None:
    """Of this process, before it imports anything that starts some."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_num_threads(threads)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_report(options: argparse.Namespace, name: str, results: Mapping[str, Any]) -> None:
    """Writes figures as JSON, with the machine and the options `threads` and `rounds`, into the folder `out`."""
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "threads": options.threads,
        "rounds": options.rounds,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "results": results,
    }
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.step", description="An optimizer step on a CPU.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of step.json")
    parser.add_argument("--rounds", type=int, default=7, help="measured runs of each side at each size")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    parser.add_argument("--only", choices=["speed", "memory"], help="measures one of the two")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        if options.only != "memory":
            in_a_process(make_policy, Path(name) / "speed", _SPEED_SIZES)
            results["speed"] = measure_speed(f"{name}/speed", options.rounds, options.threads)
        if options.only != "speed":
            in_a_process(make_policy, Path(name) / "memory", _MEMORY_SIZES)
            step, plain = (
                statistics.median(in_a_process(side, f"{name}/memory", options.threads) for _ in range(3))
                for side in (step_memory, plain_memory)
            )
            results["memory"] = {"step_mib": step / 2**20, "plain_mib": plain / 2**20, "step / plain": step / plain}
    for title, values in results.items():
        print(f"{title:8}", "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    write_report(options, "step", results)


if __name__ == "__main__":
    main()
