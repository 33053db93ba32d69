"""``appo repeat``: starts a run again as it was started, and says whether it came out the same."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path

import yaml

from appo.commands.record.environment import environment
from appo.commands.record.record import FILE, RunRecord, differences, files_of
from appo.commands.run_config import newest_of_run
from appo.commands.saved_config import make_private
from appo.monitoring.history import read_history

log = logging.getLogger(__name__)

_SHOWN = 5
"""Differences that are named one by one."""


def repeat(run: Path, out: Path) -> str:
    """Trains again what a run has trained, and compares.

    Args:
        run: the folder of a run of ``appo fit``.
        out: the folder of the new run, which must not exist.

    Returns:
        What is equal and what is not.

    Raises:
        FileNotFoundError: if the folder holds no record of a run, or no metrics.
        FileExistsError: if the new folder is there.
        ValueError: if a file that the run has read is another one now.
        SystemExit: with the status of the new run, if it fails.
    """
    if out.exists():
        raise FileExistsError(f"--out must be a new folder, got {out}")
    record = RunRecord.read(newest_of_run([run], FILE, f"--run must be the folder of an appo fit, got {run}"))
    if record.command != "fit":
        raise ValueError(f"--run must be the folder of an appo fit, got one of appo {record.command}")
    if changed := differences(record.files, files_of(record.config)):
        keys = ", ".join(line.split(" was ")[0] for line in changed)
        raise ValueError(f"what these keys of the run name must be as it was: {keys}")
    read_history(run)  # there must be something to compare with
    for line in differences(record.environment, environment()):
        log.warning("%s", line)
    config = out / "repeated.yaml"
    make_private(config)
    config.write_text(yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    if record.processes > 1:
        log.info("the run had %d processes", record.processes)
    # A process of its own: it may start others, which begin with the same command.
    options = [f"--config={config}", f"--trainer.default_root_dir={out}", "--ckpt_path=null"]
    done = subprocess.run([sys.executable, "-m", "appo", "fit", *options], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return "\n".join(compared(run, out))


def compared(old: Path, new: Path) -> list[str]:
    """What two runs have logged and the policies that they wrote: what is equal, and what is not."""
    first, second = read_history(old), read_history(new)
    lines = []
    if len(first) != len(second):
        lines.append(f"{len(first)} iterations before, {len(second)} now")
    unequal = [
        f"iteration {number}, {name}: {before.get(name)} before, {now.get(name)} now"
        for number, (before, now) in enumerate(zip(first, second, strict=False))
        for name in dict.fromkeys((*before, *now))
        if not is_of_the_machine(name) and before.get(name) != now.get(name)
    ]
    number = min(len(first), len(second))
    lines += [*unequal[:_SHOWN], *([f"and {len(unequal) - _SHOWN} more"] if len(unequal) > _SHOWN else [])]
    if not unequal:
        lines.append(f"all metrics of {number} iterations are equal, times and memory aside")
    weights = [_weights(run) for run in (old, new)]
    if all(weights):
        lines.append(f"the weights are {'equal to the bit' if weights[0] == weights[1] else 'different'}")
    return lines


def is_of_the_machine(name: str) -> bool:
    """Whether a metric depends on how fast the machine was, or on what else the process held."""
    metric = name.rpartition("/")[2]
    return metric.endswith(("_s", "_seconds", "_idle")) or metric in ("mfu", "overhead", "peak_memory_gib")


def _weights(run: Path) -> Mapping[str, str]:
    """The hash of each file of the weights of the policy that a run has written."""
    hashes = {}
    for path in sorted((run / "policy").glob("*.safetensors")):
        with path.open("rb") as file:
            hashes[path.name] = file_digest(file, "sha256").hexdigest()
    return hashes
