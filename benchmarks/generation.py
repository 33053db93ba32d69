"""Measures sampled tokens a second of `HFEngine` against plain ``model.generate`` on the same prompts.

The policy is a random tiny Llama without an end token, so that both sides sample exactly the tokens asked for:

- `equal`: every row samples the same number of tokens; nothing can be gained by letting rows leave.
- `ragged`: conversations of several turns of unlike length with a tool result after each. The engine submits a
  continuation as soon as a turn ends; ``generate`` has to finish the longest turn of the batch, and starts the next
  turn from its whole text. Only tokens asked for count.

The sides alternate; the figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from appo.engines import HFEngine, Request

VOCAB_SIZE = 1700
PAD_ID = 0


@dataclass(frozen=True)
class Workload:
    """Conversations, the same for both sides.

    Attributes:
        name: of the use.
        prompts: token ids each conversation begins with.
        turns: tokens to sample in each turn of each conversation.
        results: token ids that follow each turn but the last.
    """

    name: str
    prompts: list[tuple[int, ...]]
    turns: list[list[int]]
    results: list[list[tuple[int, ...]]]

    @property
    def num_tokens(self) -> int:
        """Tokens to sample in all."""
        return sum(sum(turns) for turns in self.turns)


@dataclass(frozen=True)
class Result:
    """Median tokens a second of both sides in one use."""

    workload: str
    num_rows: int
    num_tokens: int
    engine_tokens_per_s: float
    generate_tokens_per_s: float
    ratio: float


def make_workload(name: str, num_rows: int, num_turns: int, shortest: int, longest: int) -> Workload:
    """Draws prompts, turn lengths and tool results; equal bounds make equal turns."""
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist())

    return Workload(
        name,
        prompts=[tokens(number(40, 80)) for _ in range(num_rows)],
        turns=[[number(shortest, longest) for _ in range(num_turns)] for _ in range(num_rows)],
        results=[[tokens(number(5, 20)) for _ in range(num_turns - 1)] for _ in range(num_rows)],
    )


def run_engine(engine: HFEngine, workload: Workload) -> None:
    """Samples the conversations, each going on as soon as its turn ends."""
    texts = list(workload.prompts)
    turn = [0] * len(texts)
    for row, text in enumerate(texts):
        engine.submit(Request(row, text, workload.turns[row][0], seed=row))
    while engine.num_in_flight:
        for completion in engine.step():
            row = completion.id
            turn[row] += 1
            if turn[row] == len(workload.turns[row]):
                continue
            texts[row] = (*texts[row], *completion.token_ids, *workload.results[row][turn[row] - 1])
            engine.submit(Request(row, texts[row], workload.turns[row][turn[row]], seed=row + turn[row] * len(texts)))


@torch.inference_mode()
def run_generate(generate: Callable[..., Tensor], workload: Workload) -> None:
    """Samples the conversations turn by turn, all rows of a turn in one batch."""
    texts = list(workload.prompts)
    for turn in range(len(workload.turns[0])):
        wanted = [turns[turn] for turns in workload.turns]
        token_ids, mask = pad_left(texts)
        sampled = generate(
            input_ids=token_ids,
            attention_mask=mask,
            max_new_tokens=max(wanted),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=PAD_ID,
            use_cache=True,
        )[:, token_ids.shape[1] :].tolist()
        assert all(len(row) == max(wanted) for row in sampled)
        if turn + 1 < len(workload.turns[0]):
            texts = [
                (*text, *new[:count], *results[turn])
                for text, new, count, results in zip(texts, sampled, wanted, workload.results, strict=True)
            ]


def pad_left(texts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """The texts as ``[B, T]`` token ids and mask, padding first."""
    width = max(len(text) for text in texts)
    token_ids = torch.tensor([[PAD_ID] * (width - len(text)) + list(text) for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return token_ids, mask


def make_policy(folder: Path) -> None:
    """Saves a random Llama of 0.6 M parameters, and a tokenizer that has no end token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{a} times {b} makes {a * b}." for a in range(60) for b in range(60)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD_ID,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(policy: str, workload: Workload, rounds: int) -> Result:
    """Runs both sides in turn, after one run of each that does not count."""
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    engine = HFEngine(device="cpu")
    seconds: dict[str, list[float]] = {"engine": [], "generate": []}
    for round_number in range(rounds + 1):
        # Started anew: what an earlier round left in the prefix cache would be a gift.
        engine.start(policy)
        for side, sample in (
            ("engine", partial(run_engine, engine)),
            ("generate", partial(run_generate, model.generate)),
        ):
            torch.manual_seed(round_number)
            begin = time.perf_counter()
            sample(workload)
            if round_number:
                seconds[side].append(time.perf_counter() - begin)
        engine.stop()
    engine_speed, generate_speed = (workload.num_tokens / statistics.median(seconds[side]) for side in seconds)
    return Result(
        workload.name,
        len(workload.prompts),
        workload.num_tokens,
        round(engine_speed),
        round(generate_speed),
        round(engine_speed / generate_speed, 2),
    )


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.generation", description="HFEngine against model.generate.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of generation.json")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side in each use")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads of both sides")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256], help="conversations at once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    results = []
    print(f"{'use':8} {'rows':>5} {'tokens':>7} {'engine tok/s':>13} {'generate tok/s':>15} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as policy:
        make_policy(Path(policy))
        for num_rows in options.rows:
            for workload in (
                make_workload("equal", num_rows, num_turns=1, shortest=128, longest=128),
                make_workload("ragged", num_rows, num_turns=3, shortest=8, longest=72),
            ):
                result = measure(policy, workload, options.rounds)
                results.append(result)
                print(
                    f"{result.workload:8} {num_rows:5} {result.num_tokens:7} {result.engine_tokens_per_s:13,} "
                    f"{result.generate_tokens_per_s:15,} {result.ratio:6.2f}"
                )
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "results": [asdict(result) for result in results],
    }
    (options.out / "generation.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
