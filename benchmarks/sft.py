"""Measures what packing conversations saves in supervised fine-tuning, against the same rows padded, on a CPU.

- `lengths`: 16 conversations that share nothing, of log-normal lengths, 40 to 1,600 tokens, 200 in the median.
- `system`: 16 conversations of 100 to 400 tokens behind a system prompt of 600 that all of them share.

Each is one optimizer step of 16 rows in 4 batches: `padded` sorts the rows by length, four a batch, pads them and takes
the logits of all positions, as `appo sft` once did and a plain training loop does; `packed` is what `appo sft` does.
Two thirds of the tokens behind the prompt are learned. Policies are random Qwen2 of 11 and of 31 million parameters.
Both sides run in one process and take turns; figures are medians over rounds of their ratios, in seconds on the clock
and in seconds of processors, which also mean something on a machine that others use.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.step import Clock, in_a_process, limit_threads, make_policy, write_report

_POLICIES = {
    "11M": {"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    "31M": {"vocab_size": 8192, "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 5},
}
_NUM_ROWS, _NUM_BATCHES = 16, 4
_SHAPES = ("lengths", "system")


def _rows(shape: str, vocab_size: int) -> list[Any]:
    import torch

    from appo.sft.encoding import Example

    generator = torch.Generator().manual_seed(0)

    def tokens(number: int) -> list[int]:
        drawn: list[int] = torch.randint(1, vocab_size, (number,), generator=generator).tolist()
        return drawn

    if shape == "lengths":
        normal = torch.randn(_NUM_ROWS, generator=generator).tolist()
        system, lengths = [], [min(1600, max(40, round(200 * math.exp(0.9 * x)))) for x in normal]
    else:
        system, lengths = tokens(600), torch.randint(100, 401, (_NUM_ROWS,), generator=generator).tolist()
    begun = len(system) + 1
    return [
        Example((*system, *tokens(length)), tuple(i >= begun and i % 3 > 0 for i in range(len(system) + length)))
        for length in lengths
    ]


class Side:
    """A policy with its optimizer, and the losses of the batches of one optimizer step."""

    def __init__(self, policy: str, rows: Sequence[Any]) -> None:
        import torch

        from appo.sft import SupervisedDataModule, SupervisedModule, WorldConversations

        self.rows = rows
        self.rows_per_batch = len(rows) // _NUM_BATCHES
        self.module = SupervisedModule(policy, policy)
        self.module.configure_model()
        self.module.log_dict = lambda *args, **options: None  # type: ignore[method-assign]  # there is no trainer
        self.data = SupervisedDataModule(WorldConversations(), policy, batch_size=self.rows_per_batch)
        self.num_learned = float(sum(map(self.data.num_learned, rows)))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-6, fused=True)

    def step(self) -> None:
        for loss in self.losses():
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def losses(self) -> Iterator[Any]:
        raise NotImplementedError


class Packed(Side):
    """What `appo sft` does."""

    def losses(self) -> Iterator[Any]:
        from appo.sft.sampler import PackSampler

        sampler = PackSampler([row.token_ids for row in self.rows], self.rows_per_batch, _NUM_BATCHES)
        for pack in sampler:
            batch = self.data.collate([self.rows[row] for row in pack.rows])
            yield self.module.training_step(replace(batch, num_tokens=self.num_learned), 0)


class Padded(Side):
    """Rows of similar length padded to the longest, and the logits of all positions."""

    def losses(self) -> Iterator[Any]:
        from torch.nn import functional as F

        rows = sorted(self.rows, key=len)
        assert self.module.policy is not None
        for start in range(0, len(rows), self.rows_per_batch):
            batch = self.data.collate(rows[start : start + self.rows_per_batch])
            logits = self.module.policy(input_ids=batch.token_ids, use_cache=False).logits[:, :-1]
            is_learned = batch.loss_mask[:, 1:]
            targets = batch.token_ids[:, 1:][is_learned]
            yield F.cross_entropy(logits[is_learned].float(), targets, reduction="sum") / self.num_learned


_SIDES: dict[str, type[Side]] = {"padded": Padded, "packed": Packed}


def measure(policy: str, shape: str, vocab_size: int, rounds: int, threads: int) -> dict[str, float]:
    """Both sides in turn, the first one changing from round to round, after a step of each that does not count."""
    limit_threads(threads)
    rows = _rows(shape, vocab_size)
    sides = {name: side(policy, rows) for name, side in _SIDES.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for side in sides.values():
        side.step()
    for number in range(rounds):
        for name in list(sides) if number % 2 else reversed(sides):
            clock = Clock()
            sides[name].step()
            seconds[name].append(clock.read())
    results = {"tokens": float(sum(map(len, rows)))}
    for i, unit in enumerate(("s", "cpu_s")):
        results |= {f"{name}_{unit}": statistics.median(both[i] for both in taken) for name, taken in seconds.items()}
        ratios = [a[i] / b[i] for a, b in zip(seconds["padded"], seconds["packed"], strict=True)]
        results |= {f"padded / packed, {unit}": statistics.median(ratios), f"least, {unit}": min(ratios)}
    return results


def main() -> None:
    """Prints the figures and writes them as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.sft", description="Packed conversations against padded ones.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of sft.json")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for policy, sizes in _POLICIES.items():
        with tempfile.TemporaryDirectory() as folder:
            in_a_process(make_policy, Path(folder), sizes)
            for shape in _SHAPES:
                found = in_a_process(measure, folder, shape, sizes["vocab_size"], options.rounds, options.threads)
                results[f"{shape}, {policy}"] = found
                print(
                    f"{shape}, {policy}:", "  ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True
                )
    write_report(options, "sft", results)


if __name__ == "__main__":
    main()
