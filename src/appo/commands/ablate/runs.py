"""The runs of an ablation with their full configurations, and whether what a folder holds is one of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appo.commands.ablate.spec import AblationSpec, Combination

SPECIFICATION = "specification.json"
"""File of a run's folder that holds its full configuration."""

_MUST_BE: dict[str, tuple[Any, ...]] = {
    "trainer.max_steps": (-1,),
    "trainer.max_time": (None,),
    "trainer.min_epochs": (None,),
    "trainer.min_steps": (None,),
    "trainer.fast_dev_run": (False,),
    "trainer.barebones": (False,),
    "trainer.logger": (None, True),
}
"""Options without which a run ends at its budget of tokens, and logs into its own folder."""

_PLACES = ("trainer.default_root_dir",)
_PLACES_OF_TEST = ("trainer.default_root_dir", "model.policy", "data.tokenizer")
"""Options that say where a run is; a folder may be moved."""

_MOST_DIFFERENCES = 5


@dataclass(frozen=True)
class Resolved:
    """What `appo fit` makes of a command line.

    Attributes:
        config: every option with its value, as nested sections.
        splits: of the questions that there are.
    """

    config: Mapping[str, Any]
    splits: tuple[str, ...]


Resolve = Callable[[Sequence[str]], Resolved]
"""Builds what `appo fit` would run with from its arguments, and does not run it.

Raises SystemExit where they are refused, after it has said why.
"""


@dataclass(frozen=True)
class Run:
    """One training, and the test of what came of it.

    Attributes:
        combination: its name.
        seed: of everything random.
        tokens: generated tokens that end it.
        folder: of the training.
        fit_args: of `appo fit`.
        specification: every option of the training by dotted key, but for those that say where it is.
        test_args: of `appo test`.
        test_specification: likewise; none if there is nothing to test.
    """

    combination: str
    seed: int
    tokens: int
    folder: Path
    fit_args: tuple[str, ...]
    specification: Mapping[str, Any]
    test_args: tuple[str, ...] = ()
    test_specification: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.combination}, seed {self.seed}"

    @property
    def test_folder(self) -> Path:
        """Of the test."""
        return self.folder / "test"


def resolve_runs(spec: AblationSpec, resolve: Resolve) -> list[Run]:
    """All runs, seed by seed, each accepted by the parser of `appo fit`.

    Raises:
        SystemExit: if the parser refuses one.
        ValueError: if one could not be compared with the others.
    """
    runs = []
    for seed in spec.seeds:
        resolved = {c.name: _resolve(spec, c, seed, resolve) for c in spec.combinations}
        for trained in spec.combinations:
            tested = spec.combinations[0] if spec.evaluate_with == "first" else trained
            run = _run(spec, seed, trained, tested, resolved)
            _check_resolved(spec, run, resolved[trained.name].splits, resolved[tested.name].splits)
            runs.append(run)
    _check_distinct(runs)
    return runs


def _run(
    spec: AblationSpec, seed: int, trained: Combination, tested: Combination, resolved: Mapping[str, Resolved]
) -> Run:
    """The training of one combination, tested under the options of another, or of itself."""
    run = Run(
        combination=trained.name,
        seed=seed,
        tokens=spec.tokens,
        folder=_folder(spec, trained, seed),
        fit_args=_fit_args(spec, trained, seed),
        specification=flatten(resolved[trained.name].config, _PLACES),
    )
    if not spec.needs_test:
        return run
    policy = f"--model.policy={run.folder / 'policy'}"
    return replace(
        run,
        test_args=(*tested.args, *_owned_args(spec, seed, run.test_folder), policy),
        test_specification=flatten(resolved[tested.name].config, _PLACES_OF_TEST),
    )


def check_folder(run: Run) -> None:
    """Makes sure that the folder of a run is new, or holds what the same run has left there.

    Raises:
        ValueError: if it holds something else.
    """
    if not run.folder.exists() or not any(run.folder.iterdir()):
        return
    if not (run.folder / SPECIFICATION).exists():
        raise ValueError(f"out must not hold foreign files, got {run.folder} without a {SPECIFICATION}")
    found = read_specification(run.folder)
    if found != run.specification:
        raise ValueError(
            f"out must hold runs of the same specification, got {run.folder} with another one: "
            f"{differences(found or {}, run.specification)}"
        )


def read_specification(folder: Path) -> dict[str, Any] | None:
    """The specification of the run that `folder` holds; none if it holds none."""
    path = folder / SPECIFICATION
    if not path.exists():
        return None
    specification: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return specification


def write_specification(folder: Path, specification: Mapping[str, Any]) -> None:
    """Marks `folder` as that of a run; in one step, so that a killed process leaves no half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{SPECIFICATION}.draft"
    draft.write_text(json.dumps(specification, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / SPECIFICATION)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The options in which two specifications differ, with both values."""
    absent = object()
    keys = [key for key in sorted({*found, *wanted}) if found.get(key, absent) != wanted.get(key, absent)]
    texts = [
        f"{key} is {json.dumps(found[key]) if key in found else 'absent'} there, "
        f"{json.dumps(wanted[key]) if key in wanted else 'absent'} here"
        for key in keys[:_MOST_DIFFERENCES]
    ]
    if len(keys) > _MOST_DIFFERENCES:
        texts.append(f"and {len(keys) - _MOST_DIFFERENCES} options more")
    return "; ".join(texts)


def _folder(spec: AblationSpec, combination: Combination, seed: int) -> Path:
    return spec.out / "runs" / combination.name / f"seed_{seed}"


def _fit_args(spec: AblationSpec, combination: Combination, seed: int) -> tuple[str, ...]:
    return (*combination.args, *_owned_args(spec, seed, _folder(spec, combination, seed)))


def _owned_args(spec: AblationSpec, seed: int, folder: Path) -> tuple[str, ...]:
    return (
        f"--seed_everything={seed}",
        f"--data.seed={seed}",
        f"--rollout.seed={seed}",
        f"--rollout.stop_after_tokens={spec.tokens}",
        "--trainer.max_epochs=-1",
        "--trainer.enable_progress_bar=false",  # it would fill the log
        f"--trainer.default_root_dir={folder}",
    )


def _resolve(spec: AblationSpec, combination: Combination, seed: int, resolve: Resolve) -> Resolved:
    where = f"the combination {combination.name}, seed {seed}"
    try:
        return resolve(_fit_args(spec, combination, seed))
    except SystemExit:
        sys.stderr.write(f"error: appo fit refuses {where}; nothing was run\n")
        raise
    except Exception as error:
        error.add_note(f"raised while parsing {where}; nothing was run")
        raise


def flatten(config: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{name}": item for name, item in flatten(value).items()}
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if key not in without}


def _check_resolved(spec: AblationSpec, run: Run, splits: Sequence[str], tested_splits: Sequence[str]) -> None:
    for key, wanted in _MUST_BE.items():
        value = run.specification.get(key)
        if value not in wanted:
            raise ValueError(
                f"{key} must be {json.dumps(wanted[0])} in an ablation, whose runs end by their tokens and log into "
                f"their own folders, got {json.dumps(value)}"
            )
    for name, metric in (("metric", spec.metric), ("curve", spec.curve or "")):
        kind = metric.partition("/")[0]
        if kind in ("test", "validation") and kind not in (tested_splits if kind == "test" else splits):
            raise ValueError(f"{name} must be of other questions than those of the {kind}, of which data.source has "
                             f"none, got {metric!r}")  # fmt: skip


def _check_distinct(runs: Sequence[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        twin = seen.setdefault(json.dumps(run.specification, sort_keys=True), run)
        if twin is not run:
            raise ValueError(f"combinations must differ, got {twin.combination} and {run.combination}, which are the "
                             "same configuration")  # fmt: skip
