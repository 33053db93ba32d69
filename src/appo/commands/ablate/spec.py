"""What an ablation compares: combinations of options, each under a name that is a folder's as well."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

from appo.commands.recipes import config_path

CONFIG = "config"
"""The key in `vary` whose values are overlay files."""

NO_OVERLAY = "base"
"""Name of the combination that takes no overlay."""

OWNED = {
    "seed_everything": "seeds",
    "rollout.seed": "seeds",
    "data.seed": "seeds",
    "rollout.stop_after_tokens": "tokens",
    "trainer.max_epochs": "tokens",
    "trainer.default_root_dir": "out",
    "ckpt_path": "out",
}
"""Options of `appo fit` that the ablation sets itself, and the option of the ablation that decides them."""

MATCHED = ("data.prompts_per_iteration", "data.prompts_per_minibatch")
"""Options that match=tokens_per_step sets for every combination but the first."""

_LONGEST_NAME = 120
"""Characters of a combination's name; file systems take 255 bytes."""


@dataclass(frozen=True)
class Combination:
    """One value for every key that is varied.

    Attributes:
        name: readable, and safe as the name of a folder.
        values: by key.
        args: the whole command line of `appo fit`, up to what differs between runs.
        folder: of its runs, under ``runs/``.
    """

    name: str
    values: Mapping[str, Any]
    args: tuple[str, ...]
    folder: str

    def with_prompts(self, per_iteration: int, per_minibatch: int) -> Combination:
        """The same with other numbers of prompts, in a folder of its own."""
        numbers = zip(MATCHED, (per_iteration, per_minibatch), strict=True)
        args = (*self.args, *(f"--{key}={number}" for key, number in numbers))
        return replace(self, args=args, folder=f"{self.folder},prompts_per_iteration={per_iteration}")


@dataclass(frozen=True)
class AblationSpec:
    """What to compare, and at which budget.

    Attributes:
        vary: values by option; the key `config` takes overlay files, several as a list, none as null.
        seeds: of the runs of every combination.
        tokens: generated tokens at which a run ends.
        out: folder of the runs and of what is made of them.
        config: files that every run starts from.
        options: of `appo fit`, as on its command line, for every run.
        jobs: runs side by side.
        metric: that the table compares: ``test/...`` of the trained policy, or the last one of a run's log.
        curve: metric of a run's log that the figure draws; none takes that of `metric`.
        evaluate_with: ``first`` tests every policy under the options of the first combination, ``own`` each under
            those that trained it.
        match: ``tokens_per_step`` sets the prompts of every combination but the first such that an optimizer step
            samples as many tokens as one of the first; ``none`` leaves them as they are.
    """

    vary: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    tokens: int
    out: Path
    config: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    jobs: int = 1
    metric: str = "test/accuracy"
    curve: str | None = None
    evaluate_with: str = "first"
    match: str = "tokens_per_step"
    combinations: tuple[Combination, ...] = field(init=False)

    def __post_init__(self) -> None:
        _check_counts(self)
        if not self.vary:
            raise ValueError("vary must name at least one option, got none")
        for key, values in self.vary.items():
            _check_values(key, values)
        for option in self.options:
            key = option.removeprefix("--").partition("=")[0]
            if option.startswith("--") and key in OWNED:
                raise ValueError(f"{key} must be left to the ablation, whose option {OWNED[key]!r} decides it")
        for name in ("metric", "curve"):
            value = getattr(self, name)
            prefixes = ("test/", "validation/", "rollout/", "train/")[name == "curve" :]
            if value is not None and not value.startswith(prefixes):
                raise ValueError(f"{name} must begin with one of {', '.join(prefixes)}, got {value!r}")
        if self.evaluate_with not in ("first", "own"):
            raise ValueError(f"evaluate_with must be 'first' or 'own', got {self.evaluate_with!r}")
        _check_match(self)
        object.__setattr__(self, "combinations", _combinations(self))

    @property
    def needs_test(self) -> bool:
        """Whether the trained policies are evaluated on the test questions."""
        return self.metric.startswith("test/")


def value_text(value: Any) -> str:
    """A value as `appo fit` takes it on its command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _check_counts(spec: AblationSpec) -> None:
    if not spec.seeds:
        raise ValueError("seeds must name at least one seed, got none")
    for seed, count in Counter(spec.seeds).items():
        if not _is_int(seed) or seed < 0:
            raise ValueError(f"seeds must be whole numbers from 0, got {seed!r}")
        if count > 1:
            raise ValueError(f"seeds must differ, got {seed} {count} times")
    for name, value in (("tokens", spec.tokens), ("jobs", spec.jobs)):
        if not _is_int(value) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def _check_match(spec: AblationSpec) -> None:
    if spec.match not in ("tokens_per_step", "none"):
        raise ValueError(f"match must be 'tokens_per_step' or 'none', got {spec.match!r}")
    for key in spec.vary:
        if spec.match != "none" and key in MATCHED:
            raise ValueError(f"match must be none where {key} is varied, which {spec.match} sets, got {spec.match!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_values(key: str, values: Sequence[Any]) -> None:
    if key in OWNED:
        raise ValueError(f"vary must not name {key}, which the ablation decides by its option {OWNED[key]!r}")
    if not values:
        raise ValueError(f"vary must give {key} at least one value, got none")
    for value, count in Counter(_canonical(value) for value in values).items():
        if count > 1:
            raise ValueError(f"values of {key} in vary must differ, got {value} {count} times")
    if key == CONFIG:
        for path in (path for value in values for path in _overlays(value)):
            if not Path(path).is_file():
                raise ValueError(f"config in vary must name files, got {path!r}")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _overlays(value: Any) -> tuple[str, ...]:
    """The files that one value of the key `config` stands for."""
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(f"config in vary must name files, got {value!r}")
    return tuple(map(config_path, paths))


def _combinations(spec: AblationSpec) -> tuple[Combination, ...]:
    short = _short_keys(list(spec.vary))
    labels = {
        key: _distinct([f"{short[key]}={_label(key, value)}" for value in values], values)
        for key, values in spec.vary.items()
    }
    combinations = []
    for chosen in product(*(range(len(values)) for values in spec.vary.values())):
        values = {key: spec.vary[key][i] for key, i in zip(spec.vary, chosen, strict=True)}
        name = ",".join(labels[key][i] for key, i in zip(spec.vary, chosen, strict=True))
        name = _shortened(name, values)
        combinations.append(Combination(name, values, _args(spec, values), folder=name))
    return tuple(combinations)


def _args(spec: AblationSpec, values: Mapping[str, Any]) -> tuple[str, ...]:
    """What all runs share comes first: the parser takes the last word, and that is what varies."""
    overlays = [f"--config={path}" for path in _overlays(values.get(CONFIG))]
    varied = [f"--{key}={value_text(value)}" for key, value in values.items() if key != CONFIG]
    return (*(f"--config={config_path(path)}" for path in spec.config), *spec.options, *overlays, *varied)


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart."""
    short = {}
    for key in keys:
        words = key.split(".")
        endings = [".".join(words[-n:]) for n in range(1, len(words) + 1)]
        others = [f".{other}" for other in keys if other != key]
        short[key] = next((e for e in endings if not any(other.endswith(f".{e}") for other in others)), key)
    return short


def _label(key: str, value: Any) -> str:
    """A value in a few characters that every file system takes."""
    text = _overlay_label(value) if key == CONFIG else _readable(value)
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-.") or "empty"


def _overlay_label(value: Any) -> str:
    return "-".join(Path(path).stem for path in _overlays(value)) or NO_OVERLAY


def _readable(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        name = str(value["class_path"]).rpartition(".")[2]
        return "-".join([name, *(f"{key}={_readable(v)}" for key, v in (value.get("init_args") or {}).items())])
    if isinstance(value, dict):
        return "-".join(f"{key}={_readable(v)}" for key, v in value.items())
    if isinstance(value, list):
        return "-".join(_readable(v) for v in value)
    return value_text(value)


def _distinct(labels: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Labels, those that a file system may take for one another with a mark of their value."""
    counts = Counter(label.lower() for label in labels)
    return [
        f"{label}-{_digest(value)}" if counts[label.lower()] > 1 else label
        for label, value in zip(labels, values, strict=True)
    ]


def _shortened(name: str, values: Mapping[str, Any]) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}-{_digest(dict(values))}"


def _digest(value: Any) -> str:
    return blake2b(_canonical(value).encode(), digest_size=4).hexdigest()
