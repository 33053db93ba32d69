"""Peak memory of real optimizer steps on a CPU against what `appo plan` says of them.

``python -m benchmarks.memory_plan --out runs/benchmarks``

Every case runs in a process of its own, or in two: the module and Lightning's trainer take two optimizer steps of two
micro-batches each with a random policy. Measured is the greatest resident memory of the process above what it had
before the policy was there, of two processes the larger; large tensors are given back to the system as soon as they are
freed.

Where a GPU has the next layer on its way while one is computed, a CPU gathers them one after the other, but gloo takes
a copy of all that it gathers or adds up: so two layers, which the plan counts, are there on both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from appo.commands.plan.plan import RUNTIME_BYTES, plan_memory
from appo.commands.plan.settings import EngineSettings, Precision, RunSettings
from appo.commands.plan.size import PolicySize
from appo.distributed import comm
from benchmarks.weight_sync import GIVE_BACK

MODELS: dict[str, dict[str, Any]] = {
    "llama-small": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048, "tie_word_embeddings": False,
    },
    "llama-wide": {
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4096, "tie_word_embeddings": False,
    },
    "qwen2-deep": {
        "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": True,
    },
    "qwen2-vocabulary": {
        "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 65536, "tie_word_embeddings": True,
    },
    "llama-vocabulary": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32768, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Shapes in which layers, activations or the vocabulary weigh most."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        model: key of `MODELS`.
        optimizer: class of ``torch.optim``.
        dtype: of the parameters.
        checkpointing: whether layers are computed again in the backward pass.
        rows: of a micro-batch.
        row_tokens: of each row.
        scored: tokens of each row whose log-probs are taken.
        strategy: `single`, or on two processes `fsdp2` or `tensor`, in which they compute every layer together.
    """

    model: str
    optimizer: str = "AdamW"
    dtype: str = "float32"
    checkpointing: bool = False
    rows: int = 4
    row_tokens: int = 512
    scored: int = 64
    strategy: Literal["single", "fsdp2", "tensor"] = "single"

    @property
    def num_processes(self) -> int:
        """How many train together."""
        return 1 if self.strategy == "single" else 2

    @property
    def tensor_parallel(self) -> int:
        """How many compute a layer together."""
        return 2 if self.strategy == "tensor" else 1


CASES = (
    Case("llama-wide"),
    Case("llama-wide", checkpointing=True),
    Case("llama-wide", optimizer="SGD"),
    Case("llama-wide", optimizer="SGD", checkpointing=True, rows=8),
    Case("qwen2-deep"),
    Case("qwen2-deep", checkpointing=True),
    Case("qwen2-deep", dtype="bfloat16", rows=2),
    Case("qwen2-vocabulary", rows=1, scored=256),
    Case("qwen2-vocabulary", checkpointing=True, rows=4, scored=500),
    Case("llama-wide", strategy="fsdp2", rows=2),
    Case("llama-wide", strategy="fsdp2", checkpointing=True, rows=2),
    Case("qwen2-deep", strategy="fsdp2", dtype="bfloat16", rows=2),
    Case("qwen2-vocabulary", strategy="fsdp2", rows=1, scored=256),
    Case("llama-wide", strategy="tensor", rows=2),
    Case("llama-wide", strategy="tensor", checkpointing=True),
    Case("llama-wide", strategy="tensor", optimizer="SGD", rows=2),
    Case("qwen2-deep", strategy="tensor", rows=2),
    Case("llama-vocabulary", strategy="tensor", rows=2, scored=500),
    Case("llama-vocabulary", strategy="tensor", rows=2, row_tokens=64, scored=32),
)

SENT_GRADIENTS = 3
"""Times that gradients of embedding and head are there when they are added up over processes on a CPU: as they were
computed, as they are sent, and as gloo copies them. Activations are gone then, and weights not gathered any more."""


@dataclass(frozen=True)
class Result:
    """Predicted and measured bytes of one case."""

    case: Case
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def predict(case: Case) -> int:
    """The update phase of a plan for processes without a GPU."""
    num_bytes = getattr(torch, case.dtype).itemsize
    run = RunSettings(
        num_gpus=case.num_processes,
        strategy="single" if case.strategy == "single" else "fsdp",
        tensor_parallel=case.tensor_parallel,
        precision=Precision(num_bytes, num_bytes, num_bytes),
        state_bytes={"AdamW": 2, "SGD": 0}[case.optimizer] * num_bytes,
        foreach=False,
        checkpointing=case.checkpointing,
        micro_batch_tokens=case.rows * case.row_tokens,
        scored_tokens=case.rows * case.scored,
        prompt_tokens=case.row_tokens - case.scored,
        response_tokens=case.scored,
        device="cpu",
        engine=EngineSettings("server"),
    )
    size = PolicySize.of_config(transformers.AutoConfig.for_model(**MODELS[case.model]))
    plan = plan_memory(size, run)
    expected = plan.total("update") - RUNTIME_BYTES
    if case.num_processes == 1:
        return expected
    held = sum(item.num_bytes for item in plan.items if item.name in ("weights", "optimizer state", "gradients"))
    return max(expected, held + SENT_GRADIENTS * size.vocabulary_weights * num_bytes)


def measure(case: Case) -> int:
    """Runs the case in a process of its own, which starts the second one if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.utils.logging.disable_progress_bar()
        config = transformers.AutoConfig.for_model(**MODELS[case.model])
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        command = [
            sys.executable,
            "-m",
            "benchmarks.memory_plan",
            "--case",
            json.dumps(asdict(case)),
            "--folder",
            folder,
        ]
        done = subprocess.run(command, env={**os.environ, **GIVE_BACK}, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def resident(name: str) -> int:
    """Bytes of this process: ``VmRSS`` at present, ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def forget_peak() -> None:
    """Lets ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def take_steps(case: Case, folder: str) -> int:
    """The greatest resident memory of two optimizer steps, above what there was before the policy; of all processes."""
    import gc

    import lightning as L
    from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
    from torch.utils.data import DataLoader

    from appo.core.batch import TrajectoryBatch
    from appo.core.collate import make_batch
    from appo.distributed.fsdp import FSDP2Strategy
    from appo.losses import ClippedLoss
    from appo.training.module import APPOModule

    strategies: dict[str, Callable[[], Strategy | str]] = {
        "single": lambda: "auto",
        "fsdp2": FSDP2Strategy,
        "tensor": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
    }

    def batch(rows: int, length: int, scored: int) -> TrajectoryBatch:
        mask = (torch.arange(length) >= length - scored).expand(rows, length)
        zeros = torch.zeros(rows, length)
        return make_batch(
            token_ids=torch.randint(0, 1000, (rows, length)),
            lengths=torch.full((rows,), length),
            response_mask=mask,
            behavior_log_probs=zeros,
            old_log_probs=zeros,
            advantages=torch.randn(rows, 1) * mask,
        )

    class Team(L.Callback):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            comm.join(trainer.world_size, 600.0, case.tensor_parallel)

    class Peak(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            gc.collect()
            forget_peak()

    def fit(model: str, batches: list[TrajectoryBatch], dtype: str, callbacks: list[L.Callback]) -> None:
        module = APPOModule(
            model,
            ClippedLoss(behavior_correction="off"),
            optimizer=lambda parameters: getattr(torch.optim, case.optimizer)(parameters, lr=1e-6),
            max_tokens_per_microbatch=case.rows * case.row_tokens,
            gradient_checkpointing=case.checkpointing,
            dtype=dtype,
        )
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Team(), *callbacks], devices=case.num_processes,
            strategy=strategies[case.strategy](), use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(batches, batch_size=None))

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as tiny:
        config = transformers.LlamaConfig(
            vocab_size=1000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tiny)
        # Libraries load what they need in the first step.
        fit(tiny, [batch(2, 8, 4)], case.dtype, [])
    # Those that compute layers together have the rows of both.
    batches = [batch(2 * case.rows // case.tensor_parallel, case.row_tokens, case.scored) for _ in range(2)]
    gc.collect()
    before = resident("VmRSS")
    fit(folder, batches, case.dtype, [Peak()])
    return max(comm.all_gather(resident("VmHWM") - before))


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory_plan", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of memory_plan.json")
    parser.add_argument("--case", help="one case as JSON, in this process: prints its bytes")
    parser.add_argument("--folder", help="policy of that case")
    options = parser.parse_args()
    if options.case:
        num_bytes = take_steps(Case(**json.loads(options.case)), options.folder)
        if comm.rank() == 0:
            print(num_bytes)
        return
    print(
        f"{'model':17} {'strategy':9} {'optimizer':9} {'dtype':9} {'checkpointing':13} {'tokens':>6} {'scored':>6} "
        f"{'predicted':>10} {'measured':>10} {'ratio':>6}"
    )
    results = []
    for case in CASES:
        result = Result(case, predict(case), measure(case))
        results.append(result)
        print(
            f"{case.model:17} {case.strategy:9} {case.optimizer:9} {case.dtype:9} {case.checkpointing!s:13} "
            f"{case.rows * case.row_tokens:6} {case.rows * case.scored:6} "
            f"{result.predicted / 2**20:6.0f} MiB {result.measured / 2**20:6.0f} MiB {result.ratio:6.2f}",
            flush=True,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "results": [{**asdict(result), "ratio": round(result.ratio, 3)} for result in results],
    }
    (options.out / "memory_plan.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
