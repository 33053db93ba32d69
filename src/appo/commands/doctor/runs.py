"""Steps that train on one device, as ``appo fit`` does."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from appo.commands import cli
from appo.commands.doctor import configs
from appo.commands.doctor.configs import write_config
from appo.commands.doctor.policies import policy_folder
from appo.commands.doctor.result import Figures, Machine, SkipStepError, StepError
from appo.commands.plan.plan import PHASES, RUNTIME_BYTES
from appo.commands.plan.settings import GIB
from appo.core.extras import MissingPackageError, require_extra

_PLAN_MARGIN = 1.1
"""How much more than planned may be held before the plan is wrong."""


def iteration_32(machine: Machine, figures: Figures) -> None:
    """In float32 throughout."""
    _iterations(machine, "32-true", figures)


def iteration_bf16(machine: Machine, figures: Figures) -> None:
    """With products in bfloat16."""
    _iterations(machine, "bf16-mixed", figures)


def _iterations(machine: Machine, precision: str, figures: Figures) -> None:
    """Two iterations, and what ``appo plan`` says of them."""
    folder = machine.folder / f"iteration-{precision}"
    config = write_config(machine, folder, precision=precision, enable_checkpointing=False)
    figures["seconds"] = _timed(["fit", "--config", str(config)])
    _changed(machine, folder, figures)
    planned = _planned(config)
    figures |= {f"planned GiB {phase}": gib for phase, gib in planned.items()}
    if not machine.is_gpu:
        return
    # The plan counts the CUDA context, which is not torch's.
    own = RUNTIME_BYTES / GIB
    bounds = {"sampling": max(planned[p] for p in PHASES if p != "update") - own, "update": planned["update"] - own}
    for phase, bound in bounds.items():
        held = configs.PEAKS[phase] / GIB
        figures |= {f"held GiB {phase}": held, f"held / planned {phase}": held / bound}
        if held > _PLAN_MARGIN * bound:
            raise StepError(f"{phase} holds {held:.2f} GiB, planned were {bound:.2f}", "report it")


def _planned(config: Path) -> dict[str, float]:
    """What ``appo plan`` prints for each phase, in GiB."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        cli.run(["plan", "--config", str(config)])
    (line,) = (line for line in output.getvalue().splitlines() if line.startswith("all "))
    return dict(zip(PHASES, map(float, line.split()[1:]), strict=True))


def _timed(args: list[str]) -> float:
    started = perf_counter()
    cli.run(args)
    return perf_counter() - started


def _changed(machine: Machine, folder: Path, figures: Figures) -> None:
    """The largest change of a weight; none would mean that nothing was trained."""
    states = [
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (policy_folder(machine), folder / "policy")
    ]
    largest = max(float((states[0][name] - tensor).abs().max()) for name, tensor in states[1].items())
    if not 0.0 < largest < 1.0:
        raise StepError(f"the largest change of a weight is {largest:.2g}", "see the log of this step")
    figures["largest change of a weight"] = largest


def resume(machine: Machine, figures: Figures) -> None:
    """One iteration, and the second from its checkpoint."""
    _resumed(machine, figures, "resume")


def lora(machine: Machine, figures: Figures) -> None:
    """An adapter, and the policy that it is merged into."""
    try:
        require_extra("peft", "this step", "lora")
    except MissingPackageError as error:
        raise SkipStepError(str(error)) from error
    folder = machine.folder / "lora"
    config = write_config(machine, folder)
    options = ["--model.lora.rank=8", "--model.optimizer.lr=0.01"]
    figures["seconds"] = _timed(["fit", "--config", str(config), *options])
    _changed(machine, folder, figures)


def fsdp2(machine: Machine, figures: Figures) -> None:
    """Shards of one process are the whole; all of their code runs."""
    _resumed(machine, figures, "fsdp2", strategy="fsdp2")


def offload(machine: Machine, figures: Figures) -> None:
    """Weights, gradients and optimizer state on the CPU between their uses."""
    machine.needs_gpu("shards of a CPU rest there")
    _resumed(machine, figures, "offload", "--model.sharding.cpu_offload=true", strategy="fsdp2")


def _resumed(machine: Machine, figures: Figures, name: str, *options: str, **trainer: Any) -> None:
    folder = machine.folder / name
    config = write_config(machine, folder, **trainer)
    args = ["fit", "--config", str(config), *options]
    figures["seconds"] = _timed([*args, "--trainer.max_epochs=1"])
    before = policy_version(folder)
    figures["seconds resumed"] = _timed([*args, "--ckpt_path=last"])
    check_resumed(before, policy_version(folder), figures)
    _changed(machine, folder, figures)


def policy_version(folder: Path) -> int:
    """Optimizer steps behind the last checkpoint of a run."""
    path = (folder / "checkpoints/last.ckpt").resolve()
    file = path / "meta.pt" if path.is_dir() else path
    return int(torch.load(file, map_location="cpu", weights_only=True)["policy_version"])


def check_resumed(before: int, after: int, figures: Figures) -> None:
    """Refuses a run that did not go on where it had stopped; it makes one update an iteration."""
    figures["updates before and after"] = f"{before}, {after}"
    if (before, after) != (1, 2):
        raise StepError(f"updates must be 1 and then 2, got {before} and {after}", "see the log of this step")
