"""The runs of an ablation with their full configurations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appo.commands.ablate.spec import MATCHED, AblationSpec, Combination

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

BEFORE = "before training"
"""Stands for a combination where a policy is tested that nothing was trained of."""


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
    """One training, and the test of what came of it; or only the test of a policy before its training.

    Attributes:
        combination: its name.
        seed: of everything random.
        tokens: generated tokens that end it.
        folder: of the training.
        fit_args: of `appo fit`; empty if nothing is trained.
        specification: every option by dotted key, but for those that say where it is.
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

    @property
    def policy(self) -> str:
        """That it starts from."""
        return str(self.specification["model.policy"])

    @property
    def prompts(self) -> tuple[int, int]:
        """Those of an iteration, and those of an optimizer step."""
        per_iteration, per_minibatch = (self.specification[key] for key in MATCHED)
        return per_iteration, per_minibatch or per_iteration


def resolve_runs(spec: AblationSpec, combinations: Sequence[Combination], resolve: Resolve) -> list[Run]:
    """All trainings, seed by seed, each accepted by the parser of `appo fit`.

    Args:
        spec: of the ablation.
        combinations: its own, or those with other numbers of prompts.
        resolve: builds what `appo fit` would run with.

    Raises:
        SystemExit: if the parser refuses one.
        ValueError: if one could not be compared with the others.
    """
    runs = []
    for seed in spec.seeds:
        resolved = {c.name: _resolve(spec, c, seed, resolve) for c in combinations}
        for trained in combinations:
            tested = combinations[0] if spec.evaluate_with == "first" else trained
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
    return replace(
        run,
        test_args=_test_args(spec, tested, run, str(run.folder / "policy")),
        test_specification=flatten(resolved[tested.name].config, _PLACES_OF_TEST),
    )


def runs_before_training(spec: AblationSpec, runs: Sequence[Run]) -> list[Run]:
    """The tests of the policies that trainings start from, each of which is tested once a seed.

    Args:
        spec: of the ablation.
        runs: its trainings, with their tests.
    """
    starts: dict[tuple[str, ...], Combination] = {}
    for combination in spec.combinations:
        starts.setdefault(tuple(run.policy for run in runs if run.combination == combination.name), combination)
    before = []
    for run in runs:
        start = next((c for c in starts.values() if c.name == run.combination), None)
        if start is None or run.test_specification is None:
            continue
        specification = {**run.test_specification, "model.policy": run.policy}
        test = Run(
            combination=BEFORE if len(starts) == 1 else f"{BEFORE}, {start.name}",
            seed=run.seed,
            tokens=0,
            folder=spec.out / "before" / start.folder / run.folder.name,
            fit_args=(),
            specification=specification,
            test_specification=specification,
        )
        tested = spec.combinations[0] if spec.evaluate_with == "first" else start
        before.append(replace(test, test_args=_test_args(spec, tested, test, run.policy)))
    return before


def _test_args(spec: AblationSpec, tested: Combination, run: Run, policy: str) -> tuple[str, ...]:
    return (*tested.args, *_owned_args(spec, run.seed, run.test_folder), f"--model.policy={policy}")


def _folder(spec: AblationSpec, combination: Combination, seed: int) -> Path:
    return spec.out / "runs" / combination.folder / f"seed_{seed}"


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
