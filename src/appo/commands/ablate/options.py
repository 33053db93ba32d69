"""The command line of ``appo ablate`` and its YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from appo.commands.ablate.spec import AblationSpec, value_text

DESCRIPTION = """\
Trains every combination of the values of some options, over seeds, until the same number of tokens was generated,
tests the trained policies, and writes a table (runs.csv, ablation.md) and the learning curves (curves.png, curves.svg).
The same command goes on where it was stopped. See docs/ablation.md.

A run ends with the iteration that reaches --tokens. trainer.max_epochs of the configuration, by which a training ends
otherwise, is set to -1 (no limit), so that it cannot end one earlier; other limits of the trainer are refused.
"""

EPILOG = """\
Every other option is one of `appo fit` and holds for all runs, e.g. --model.policy runs/sft/policy.

example: appo ablate --config configs/appo.yaml --vary rollout.scorer=BranchingScore,Entropy,RandomPosition \\
           --seeds 0,1,2 --tokens 120000 --out runs/ablation
"""

_FILE_KEYS = (
    "config", "vary", "seeds", "tokens", "out", "jobs", "metric", "curve", "evaluate_with", "match", "options",
)  # fmt: skip


def read_spec(args: Sequence[str]) -> AblationSpec:
    """The ablation that a command line asks for.

    Args:
        args: without the name of the command.

    Raises:
        ValueError: if an option is missing, unknown or impossible.
        SystemExit: of ``--help``.
    """
    given, rest = _parser().parse_known_args(list(args))
    spec = _read_file(given.spec) if given.spec else {}
    spec |= {name: value for name, value in vars(given).items() if value is not None and name not in ("spec", "vary")}
    spec["vary"] = {**spec.get("vary", {}), **_varied(given.vary or ())}
    spec["options"] = (*spec.get("options", ()), *rest)
    for name in ("seeds", "tokens", "out"):
        if name not in spec:
            raise ValueError(f"{name} must be given: --{name} on the command line, or `{name}:` in --spec")
    spec["seeds"] = _seeds(spec["seeds"])
    spec["tokens"] = _whole_number("tokens", spec["tokens"])
    spec["jobs"] = _whole_number("jobs", spec.get("jobs", 1))
    spec["config"] = tuple(spec.get("config", ()))
    spec["out"] = Path(spec["out"])
    return AblationSpec(**spec)


def split_values(text: str) -> list[Any]:
    """The values in ``A,B,C`` or in a YAML list, each as YAML reads it.

    Raises:
        ValueError: if the text is neither.
    """
    try:
        values = yaml.safe_load(text) if text.startswith("[") else None
    except yaml.YAMLError:
        values = None  # several lists, one beside the other
    if isinstance(values, list):
        return values
    try:
        return list(yaml.safe_load(f"[{text}]"))
    except yaml.YAMLError as error:
        raise ValueError(f"values must be separated by commas or be a YAML list, got {text!r}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appo ablate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--spec", metavar="FILE", help="YAML file with these options as keys; the command line wins over it")
    add("--config", metavar="FILE", action="append", help="configuration of all runs; several are merged in order")
    add(
        "--vary", metavar="KEY=VALUES", action="append",
        help="values of an option of `appo fit`, separated by commas or as a YAML list; several keys are combined with "
        "one another. The key `config` takes overlay files, null for none",
    )  # fmt: skip
    add("--seeds", metavar="SEEDS", help="0,1,2: sets seed_everything, data.seed and rollout.seed of a run")
    add("--tokens", help="generated tokens at which a run ends, the same for all; sets rollout.stop_after_tokens")
    add("--out", metavar="FOLDER", help="where the runs, the table and the figure go")
    add("--jobs", metavar="N", help="runs side by side, each a process of its own; 1 unless given")
    add("--metric", help="what is compared: test/... of the trained policy (test/accuracy unless given), or the last "
        "validation/..., rollout/... or train/... of a run's log")  # fmt: skip
    add("--curve", help="metric that the figure draws; unless given, that of --metric during the training, from "
        "validation if there is one, else from the rollouts")  # fmt: skip
    add("--evaluate_with", metavar="WHICH", help="first (unless given): tests every policy under the options of the "
        "first combination, so that all are measured alike; own: under those that it was trained with")  # fmt: skip
    add("--match", metavar="WHAT", help="tokens_per_step (unless given): sets the prompts of every combination but the "
        "first such that an optimizer step samples as many tokens as one of the first, within 5 %%, by what the runs "
        "of the first seed have sampled; none: leaves them as they are")  # fmt: skip
    return parser


def _read_file(path: str) -> dict[str, Any]:
    """The options of a YAML file in the form in which the command line has them."""
    if not Path(path).is_file():
        raise ValueError(f"spec must name a file, got {path!r}")
    try:
        spec = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"spec must be a YAML file, got {path}: {error}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"spec must hold keys and values, got {path} with {spec!r}")
    for key in spec:
        if key not in _FILE_KEYS:
            raise ValueError(f"keys of {path} must be among {', '.join(_FILE_KEYS)}, got {key!r}")
    for key in ("vary", "options"):
        if not isinstance(spec.setdefault(key, {}), dict):
            raise ValueError(f"{key} in {path} must hold options and values, got {spec[key]!r}")
    if "config" in spec:
        spec["config"] = (spec["config"],) if isinstance(spec["config"], str) else tuple(spec["config"] or ())
    spec["vary"] = {str(key): _listed(values) for key, values in spec["vary"].items()}
    spec["options"] = tuple(f"--{key}={value_text(value)}" for key, value in spec["options"].items())
    return spec


def _varied(texts: Sequence[str]) -> Mapping[str, tuple[Any, ...]]:
    vary: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not key or not equals:
            raise ValueError(f"vary must have the form KEY=VALUE,VALUE, got {text!r}")
        if key in vary:
            raise ValueError(f"vary must name each option once, got {key} twice")
        vary[key] = tuple(split_values(values))
    return vary


def _listed(values: Any) -> tuple[Any, ...]:
    if isinstance(values, str):
        return tuple(split_values(values))
    return tuple(values) if isinstance(values, list) else (values,)


def _seeds(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = split_values(value)
    if not isinstance(value, list):
        raise ValueError(f"seeds must be a list such as 0,1,2, got {value!r}")
    return tuple(value)


def _whole_number(name: str, value: Any) -> int:
    try:
        return int(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}") from None
