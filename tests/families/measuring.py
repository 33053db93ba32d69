"""What `appo fit` does with a policy of a family: two iterations, of the weights and of an adapter, and the export."""

from __future__ import annotations

import io
import json
import logging
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from appo.commands import cli
from appo.rollouts.weight_sync import EngineMismatchError
from tests.engines.vllm_installed import SHARE_OPTIONS
from tests.families.policies import build
from tests.small_run import metrics

YES = "yes"
REFUSED = "refused: "
FAULT = "fault: "

_EXACT = 1e-4
"""Nats that rounding in float32 may make between engine and trainer, and between two passes of the trainer."""

_OPTIONS = (
    "--rollout.reward=tests.training.trainer_watch.MeanToken",
    "--rollout.tools=[]",
    "--rollout.branching.num_trajectories=4",
    "--rollout.branching.num_roots=2",
    "--rollout.branching.parents=any",
    "--rollout.limits.max_response_tokens=24",
    "--data.source=JsonlQuestions",
    "--data.prompts_per_iteration=2",
    "--data.max_prompt_tokens=96",
    "--model.optimizer.lr=0.01",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


@dataclass(frozen=True)
class Findings:
    """What works with a family; `YES`, what a refusal says, or a fault.

    Attributes:
        family: its name.
        model: its class in transformers.
        engine: that samples.
        train: whether two iterations train the weights, and the engine has them.
        packed: whether rows are packed, or padded.
        lora: whether two iterations train an adapter, and the engine has it merged.
        export: whether the policies that both leave, and `appo export` writes, load with the weights that were trained.
    """

    family: str
    model: str
    engine: str
    train: str
    packed: str
    lora: str
    export: str

    @property
    def faults(self) -> list[str]:
        """What neither works nor is refused, by column."""
        return [f"{name}: {value}" for name, value in asdict(self).items() if value.startswith(FAULT)]


def measure(family: str, folder: Path, engine: str) -> Findings:
    """Trains a policy of a family with one engine.

    Args:
        family: one of `FAMILIES`.
        folder: for all that is written.
        engine: `HFEngine` or `VLLMEngine`.
    """
    policy = build(family, folder / "policy")
    questions = folder / "questions.jsonl"
    lines = [json.dumps({"question": f"What is {i} + {i}?", "answer": str(2 * i)}) for i in range(4)]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    engine_options = [f"--rollout.engine={engine}", *(SHARE_OPTIONS if engine == "VLLMEngine" else [])]
    options = [f"--model.policy={policy}", *_OPTIONS, f"--data.source.train={questions}", *engine_options]
    train, log = _outcome(lambda: _fit(folder / "whole", options))
    adapter = ["--model.lora.rank=4", "--model.lora.alpha=8"]
    lora, _ = _outcome(lambda: _fit(folder / "adapted", [*options, *adapter])) if train == YES else ("", "")
    exports = [run for run, result in (("whole", train), ("adapted", lora)) if result == YES]
    export = [_outcome(lambda run=run: _export(folder / run, folder / f"{run}_export"))[0] for run in exports]
    return Findings(
        family,
        json.loads((policy / "config.json").read_text(encoding="utf-8"))["architectures"][0],
        engine,
        train,
        _packing(log) if train == YES else "",
        lora,
        next((result for result in export if result != YES), YES) if export else "",
    )


def _fit(folder: Path, options: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    cli.run(["fit", *options, f"--trainer.default_root_dir={folder}"])
    rows = [row for row in metrics(folder) if row.get("rollout/reward_mean")]
    assert len(rows) == 2, f"{len(rows)} iterations"
    first, second = rows
    for row in rows:
        assert not float(row["train/steps_without_signal"]), "a step without a gradient"
        assert not float(row["train/skipped_steps"]), "a step with an infinite gradient"
        for name in ("rollout/log_ratio_max_abs", "train/sampling_log_ratio"):
            if row.get(name):
                assert abs(float(row[name])) < _EXACT, f"{name} = {row[name]}"
        assert abs(float(row["train/ratio"]) - 1) < _EXACT, f"train/ratio = {row['train/ratio']}"
    mismatch = float(second["rollout/mismatch_max"])
    assert mismatch < 2 * _EXACT, f"rollout/mismatch_max = {mismatch}"
    assert float(first["train/grad_norm"]) > 0, "no gradient"


def _export(run: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    with redirect_stdout(io.StringIO()):
        cli.run(["export", f"--ckpt={run / 'checkpoints/last.ckpt'}", f"--out={out}"])
    left, written = (_weights(folder) for folder in (run / "policy", out))
    assert left.keys() == written.keys(), f"{left.keys() ^ written.keys()} in one folder alone"
    for name, tensor in left.items():
        assert torch.allclose(tensor, written[name], atol=1e-6), name
    begun, (model, loading) = (
        _weights(run.parent / "policy"),
        AutoModelForCausalLM.from_pretrained(run / "policy", output_loading_info=True),
    )
    assert begun.keys() == left.keys(), f"{begun.keys() ^ left.keys()} in one folder alone"
    assert any(not torch.equal(tensor, begun[name]) for name, tensor in left.items()), "nothing was trained"
    assert not any(loading.values()), f"loading: {loading}"
    assert model(torch.arange(5, 12)[None]).logits.isfinite().all(), "logits are not finite"


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _outcome(action) -> tuple[str, str]:
    """Whether something works, as a `Findings` says it, and what was logged meanwhile."""
    with _logged() as log:
        errors = io.StringIO()
        try:
            with redirect_stderr(errors):
                action()
        except SystemExit:
            lines = [line for line in errors.getvalue().splitlines() if line.startswith("error")]
            return REFUSED + lines[-1].removeprefix("error: "), log.getvalue()
        except AssertionError as error:
            return f"{FAULT}{error}", log.getvalue()
        except EngineMismatchError as error:
            return f"{REFUSED}{error}", log.getvalue()
        except ValueError as error:
            # What a check of a run says of a policy before anything is sampled ends a command in a line.
            return f"{_kind(error)}{error}", log.getvalue()
        except Exception as error:  # noqa: BLE001 - a table shows each of them
            return f"{FAULT}{type(error).__name__}: {error}", log.getvalue()
    return YES, log.getvalue()


def _kind(error: ValueError) -> str:
    """A check of the package has raised it before the first iteration, or it is a fault."""
    frames = traceback.extract_tb(error.__traceback__)
    is_check = "/src/appo/" in frames[-1].filename and not any(frame.name == "_run_stage" for frame in frames)
    return REFUSED if is_check else f"{FAULT}{type(error).__name__}: "


@contextmanager
def _logged() -> Iterator[io.StringIO]:
    log, logger = io.StringIO(), logging.getLogger("appo")
    handler = logging.StreamHandler(log)
    logger.addHandler(handler)
    try:
        yield log
    finally:
        logger.removeHandler(handler)


def _packing(log: str) -> str:
    lines = [line for line in log.splitlines() if "are padded instead of packed" in line]
    return lines[0].partition("slower: ")[2] if lines else YES
