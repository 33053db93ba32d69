"""Measures what rows that share tokens cost as a tree of prefixes, against the same rows packed flat, on a CPU.

- `roots`: a prompt of 600 tokens and 8 roots of 200 to 600; a pass without gradient and an update.
- `branches`: a prompt of 600 tokens, 4 roots of 800 to 1,200 and 3 branches from the middle of each, as long as what
  they replace; an update that trains roots and the branches' own tokens (``train_on: both``).
- `alone`: 8 rows of 300 to 900 tokens that share nothing; a pass without gradient and an update. Its ratio, the other
  way round, is what looking for shared tokens costs.
- `memory`: largest resident memory above the model and its optimizer of the update of `branches`.

Policies are random Qwen2 of 11 and of 26 million parameters with few words: with the vocabulary of a large model,
policies so small would be little but their head, which sees every trained token either way. The wider one gives less of
its time to attention, of which a tree spares less than of the rest. Both sides run in one process and take turns;
figures are medians over rounds of their ratios, in seconds on the clock and in seconds of processors, which also mean
something on a machine that others use. Those of `memory` have a process of their own each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.step import (
    Clock,
    in_a_process,
    limit_threads,
    make_policy,
    peak_memory,
    reset_peak_memory,
    write_report,
)

_VOCAB_SIZE = 2048
_POLICIES = {
    "11M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    "26M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4},
}
_PROMPT_LENGTH = 600
_MAX_TOKENS = 16384
_SIDES = {"flat": False, "tree": True}


def roots_batch() -> Any:
    """One prompt, eight roots."""
    return _batch([[("root", length)] for length in range(200, 601, 57)])


def branches_batch() -> Any:
    """One prompt, four roots, each with three branches from its middle."""
    rows: list[list[tuple[str, int]]] = []
    for i, length in enumerate((800, 940, 1060, 1200)):
        head, tail = (f"head {i}", length // 2), (f"tail {i}", length - length // 2)
        rows += [[head, tail], *([head, (f"branch {i} {j}", tail[1])] for j in range(3))]
    return _batch(rows)


def alone_batch() -> Any:
    """Eight prompts with a root each; prompts differ in their first token."""
    return _batch([[(f"row {i}", length)] for i, length in enumerate(range(300, 901, 85))], prompt_length=0)


def _batch(rows: list[list[tuple[str, int]]], prompt_length: int = _PROMPT_LENGTH) -> Any:
    """Rows of a prompt and of named runs of random tokens; all are trained, those with a name seen before only once."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from appo.core.collate import make_batch

    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(1, _VOCAB_SIZE, (length,), generator=generator)

    prompt, runs = tokens(prompt_length), dict[str, torch.Tensor]()
    ids, masks, trained = [], [], []
    for row in rows:
        parts, is_new = [prompt], [torch.zeros(prompt_length, dtype=torch.bool)]
        for name, length in row:
            is_new.append(torch.full((length,), name not in runs or name == "root"))
            parts.append(tokens(length) if name == "root" else runs.setdefault(name, tokens(length)))
        ids.append(torch.cat(parts))
        trained.append(torch.cat(is_new))
        masks.append(torch.arange(len(ids[-1])) >= max(1, prompt_length))
    token_ids, mask, train_mask = (pad_sequence(values, batch_first=True) for values in (ids, masks, trained))
    lengths = torch.tensor([len(row) for row in ids])
    advantages = torch.randn(len(rows), 1, generator=generator) * train_mask
    return make_batch(
        token_ids, lengths, mask, behavior_log_probs=-8.3 * mask, advantages=advantages, train_mask=train_mask & mask
    )


_SHAPES: dict[str, tuple[Callable[[], Any], bool]] = {
    "roots": (roots_batch, True),
    "branches": (branches_batch, False),
    "alone": (alone_batch, True),
}
"""Rows, and whether a pass without gradient is measured with the update."""


class Step:
    """A policy with its optimizer, and what an iteration does with them."""

    def __init__(self, policy: str) -> None:
        import torch
        from lightning.pytorch.strategies import SingleDeviceStrategy
        from transformers import AutoModelForCausalLM

        from appo.losses import ClippedLoss
        from appo.policy.log_probs import PolicyLogProbs

        self.model = AutoModelForCausalLM.from_pretrained(policy).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.log_probs = PolicyLogProbs(self.model)
        self.loss = ClippedLoss()
        self.device = torch.device("cpu")
        self.strategy = SingleDeviceStrategy(self.device)
        if not self.log_probs.shares:
            raise RuntimeError("the policy must share what rows begin with alike")

    def run(self, batch: Any, shares: bool, evaluates: bool) -> None:
        """A pass without gradient, if it `evaluates`, and an optimizer step."""
        import torch

        from appo.policy.evaluation import evaluate_batch
        from appo.training.gradient import accumulate_gradient

        self.log_probs._sequences.shares = shares
        if evaluates:
            values = evaluate_batch(self.log_probs, batch, _MAX_TOKENS, self.device, nullcontext)
            batch = batch.evaluated(torch.arange(len(batch)), *values, 0)
        accumulate_gradient(self.log_probs, self.loss, batch, _MAX_TOKENS, self.strategy, lambda loss: loss.backward())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure_speed(policy: str, shape: str, rounds: int, threads: int) -> dict[str, float]:
    """Both sides in turn, the one that begins changing from round to round, after a short run that does not count."""
    limit_threads(threads)
    step = Step(policy)
    make, evaluates = _SHAPES[shape]
    batch = make()
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    step.run(_few_rows(), True, evaluates)
    for number in range(rounds):
        for side in list(_SIDES) if number % 2 else reversed(_SIDES):
            clock = Clock()
            step.run(batch, _SIDES[side], evaluates)
            seconds[side].append(clock.read())
            print(f"{shape}, round {number + 1}, {side}: {seconds[side][-1][1]:.2f} s of processors", flush=True)
    results = {f"{name}_tokens": float(_num_tokens(batch, shares)) for name, shares in _SIDES.items()}
    for i, unit in enumerate(("s", "cpu_s")):
        results |= {f"{side}_{unit}": statistics.median(both[i] for both in taken) for side, taken in seconds.items()}
        ratios = [flat[i] / tree[i] for flat, tree in zip(seconds["flat"], seconds["tree"], strict=True)]
        results |= {f"flat / tree, {unit}": statistics.median(ratios), f"least, {unit}": min(ratios)}
    return results


def _num_tokens(batch: Any, shares: bool) -> int:
    from appo.policy.flops import PolicyFlops

    return PolicyFlops(0.0, 0.0, 0.0).of_batch(batch, shares).num_tokens


def _few_rows() -> Any:
    return _batch([[("root", 40)]] * 2)


def measure_memory(policy: str, shares: bool, threads: int) -> int:
    """Bytes of one update above the model and the state of its optimizer."""
    limit_threads(threads)
    step = Step(policy)
    step.run(_few_rows(), shares, evaluates=False)
    batch = branches_batch()
    before = reset_peak_memory()
    step.run(batch, shares, evaluates=False)
    return peak_memory() - before


def main() -> None:
    """Prints the figures and writes them as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.trees", description="Trees of prefixes against flat rows.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of trees.json")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    parser.add_argument("--only", nargs="+", choices=[*_SHAPES, "memory"], help="measures some of them")
    parser.add_argument("--policies", nargs="+", choices=_POLICIES, default=[*_POLICIES], help="with some of them")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for policy in options.policies:
        with tempfile.TemporaryDirectory() as folder:
            in_a_process(make_policy, Path(folder), {"vocab_size": _VOCAB_SIZE, **_POLICIES[policy]})
            results[policy] = {name: _measure(folder, name, options) for name in options.only or [*_SHAPES, "memory"]}
        for name, values in results[policy].items():
            print(policy, f"{name:8}", "  ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)
    write_report(options, "trees", results)


def _measure(folder: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    if name != "memory":
        speed: dict[str, float] = in_a_process(measure_speed, folder, name, options.rounds, options.threads)
        return speed
    flat, tree = (in_a_process(measure_memory, folder, shares, options.threads) / 2**20 for shares in (False, True))
    return {"flat_mib": flat, "tree_mib": tree, "tree / flat": tree / flat}


if __name__ == "__main__":
    main()
