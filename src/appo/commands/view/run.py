"""A run as a viewer asks for it: what there is, a step, a tree."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from appo.commands.run_config import config_of_run
from appo.commands.view.curves import curves
from appo.commands.view.exclusions import Exclusions
from appo.commands.view.steps import Saved, Step, by_prompt, prompt_ids, read_step, steps_of
from appo.commands.view.texts import TokenTexts, tokenizer_of_run
from appo.commands.view.trees import Json, step_index, tree_page
from appo.monitoring.history import read_history

_KEPT = 3
"""Steps that are kept in memory."""


class Run:
    """The folder of a run, read as it grows; several threads may ask.

    Args:
        folder: of an ``appo fit`` or ``appo test``.
        policy: folder or name of the policy whose tokenizer is taken; None: the run's.

    Raises:
        FileNotFoundError: if the folder is none of a run with trajectories.
        ValueError: if its tokenizer cannot be read.
    """

    def __init__(self, folder: Path, policy: str | None = None) -> None:
        self.folder = folder
        self.name = folder.resolve().name
        steps_of(folder)
        path, config = config_of_run([folder], "run must be the folder of an appo fit or test")
        tokenizer = tokenizer_of_run(folder, config, policy)
        self._texts = TokenTexts(tokenizer)
        self._exclusions: Exclusions | None = None
        self._unknown = ""
        try:
            self._exclusions = Exclusions.of_run(path, config, tokenizer)
        except ValueError as error:  # options of another version: all else can be seen
            self._unknown = f"not known why tokens were left out: {error}".partition("\n")[0]
        self._kept: dict[str, tuple[Any, Mapping[str, Sequence[Saved]]]] = {}
        self._prompts: dict[str, tuple[Any, Sequence[str]]] = {}
        self._lock = Lock()

    def steps(self) -> list[Step]:
        """What there is by now."""
        return steps_of(self.folder)

    def last_iteration(self) -> Step:
        """What a page opens with: the last iteration, or what there is last."""
        steps = self.steps()
        return next((step for step in reversed(steps) if step.stage == "iteration"), steps[-1])

    def overview(self) -> Json:
        """Its name, its steps, and its curves so far."""
        try:
            history = read_history(self.folder)
        except FileNotFoundError:  # an evaluation has none
            history = []
        return {
            "name": self.name,
            "steps": [{"key": step.key, "stage": step.stage, "number": step.number} for step in self.steps()],
            "curves": curves(history),
        }

    def version(self) -> str:
        """Changes when a step is written."""
        return json.dumps([(step.key, step.version) for step in self.steps()])

    def asked(self) -> dict[str, list[str]]:
        """The steps that ask a question, by the id of its prompt, of questions that several steps ask."""
        found: dict[str, list[str]] = {}
        for step in self.steps():
            version = step.version
            with self._lock:
                if self._prompts.get(step.key, ((), ()))[0] != version:
                    self._prompts[step.key] = version, prompt_ids(step)
                ids = self._prompts[step.key][1]
            for prompt in ids:
                found.setdefault(prompt, []).append(step.key)
        return {prompt: keys for prompt, keys in found.items() if len(keys) > 1}

    def index(self, key: str) -> Json:
        """What lists need of a step.

        Raises:
            KeyError: if there is no such step.
        """
        return step_index(self._trees(key))

    def tree(self, key: str, number: int) -> Json:
        """All of one prompt.

        Args:
            key: of the step.
            number: of the prompt, in the order of the index.

        Raises:
            KeyError: if there is no such step or prompt.
        """
        trees = list(self._trees(key).values())
        if not 0 <= number < len(trees):
            raise KeyError(number)
        with self._lock:
            return {**tree_page(trees[number], self._texts, self._exclusions), "unknown": self._unknown}

    def _trees(self, key: str) -> Mapping[str, Sequence[Saved]]:
        step = next((step for step in self.steps() if step.key == key), None)
        if step is None:
            raise KeyError(key)
        with self._lock:
            version = step.version
            if key not in self._kept or self._kept[key][0] != version:
                self._kept.pop(key, None)
                self._kept[key] = version, by_prompt(read_step(step))
                while len(self._kept) > _KEPT:
                    del self._kept[next(iter(self._kept))]
            return self._kept[key][1]


def packed(value: Json) -> bytes:
    """JSON, compressed, equal for equal values."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)
