"""A user's own function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, SupportsFloat

from appo.core.functions import as_function
from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import REWARDS, Reward
from appo.workers.processes import ProcessPool

_OF_MANY: Mapping[str, Callable[[Trajectory], Any]] = {
    "trajectories": lambda trajectory: trajectory,
    "prompts": lambda trajectory: trajectory.prompt.question,
    "completions": lambda trajectory: trajectory.text,
    "completion_ids": lambda trajectory: trajectory.token_ids[trajectory.prompt_length :].tolist(),
    "answers": lambda trajectory: list(trajectory.prompt.answers),
}
"""What a function of many trajectories is told of each, by name, beside columns and options."""

_SIGNS_OF_MANY = ("trajectories", "prompts", "completions")
"""A function with one of these parameters takes many at once."""
_RESULT = {field.name for field in fields(RewardResult)}
"""What a `RewardResult` that comes from a process is made of."""


@REWARDS.register
@dataclass(eq=False)
class FunctionReward(Reward):
    """Calls a function, for one trajectory or for many at once. Its signature is checked when the reward is made.

    ``function(trajectory, **options)`` returns a number, or a `RewardResult` to report parts too. Further parameters
    are fields of the row, by the names of `data.source.columns`.

    A function with a parameter `completions`, `prompts` or `trajectories` is called with lists by name, an item a
    trajectory, and returns as many values; None counts as 0. It may take `trajectories`, `prompts` (the questions),
    `completions` (the responses as text, tool output included), `completion_ids` (their tokens), `answers` (lists of
    accepted ones), columns, and options, which are no lists.
    """

    function: str | Callable[..., Any]
    """Its import path ``package.module:name``; in Python, the function itself will do."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed by name to every call."""
    num_processes: int = 0
    """Processes that run the function, one trajectory each, killed at `timeout_s` whatever it does; 0 runs it in
    threads, which costs less and cannot interrupt one long operation, such as a regular expression that backtracks. For
    many trajectories at once there is one call at a time, and one process at most."""
    timeout_s: float = 30.0
    """Seconds that a call may take in a process; in a thread, ``rollout.rewards.timeout_s`` is the limit."""
    memory_mb: int = 8192
    """Address space of each process in MiB."""
    batch_size: int = 64
    """Trajectories of one call, at most, of a function that takes many."""

    _function: Callable[..., Any] = field(init=False, repr=False)
    _parameters: Mapping[str, inspect.Parameter] = field(init=False, repr=False)
    _pool: ProcessPool | None = field(init=False, repr=False, default=None)
    _ahead: dict[int, tuple[Trajectory, RewardResult]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_processes < 0:
            raise ValueError(f"num_processes must not be negative, got {self.num_processes}")
        if not self.timeout_s > 0.0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}")
        if self.memory_mb < 1024:
            raise ValueError(f"memory_mb must be at least 1024, which a process needs for itself, got {self.memory_mb}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}")
        self._function = as_function(self.function)
        try:
            signature = inspect.signature(self._function)
            self._parameters = signature.parameters
            lists = dict.fromkeys(_OF_MANY.keys() & signature.parameters.keys() if self._takes_many else ())
            signature.bind(*(() if lists else (None,)), **lists, **dict.fromkeys(self.columns), **self.options)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"function must take a trajectory and the options {self.options}, got {self.function!r} ({error})"
            ) from error
        if self.num_processes:
            if not isinstance(self.function, str):
                raise ValueError(f"function must be an import path to run in processes, got {self.function!r}")
            if self._takes_many and self.num_processes > 1:
                raise ValueError(
                    f"num_processes must be 0 or 1 for a function of many trajectories, got {self.num_processes}"
                )
            self._pool = ProcessPool(self.function, self.num_processes, self.memory_mb)

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        known = self._ahead.pop(id(trajectory), None)
        if known is not None and known[0] is trajectory:
            return known[1]
        if self._takes_many:
            return self._score_many([trajectory])[0]
        return self._result(self._run(trajectory, **self._columns_of(trajectory), **self.options))

    def score_ahead(self, trajectories: Sequence[Trajectory]) -> None:
        if self._takes_many:
            results = self._score_many(trajectories)
            self._ahead |= {id(t): (t, result) for t, result in zip(trajectories, results, strict=True)}

    @property
    def num_ahead(self) -> int | None:
        return self.batch_size if self._takes_many else None

    @property
    def max_parallel(self) -> int | None:
        return self.num_processes or None

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(
            name for name in self._own_names() if self._parameters[name].default is inspect.Parameter.empty
        )

    def start(self) -> None:
        if self._pool is not None:
            self._pool.start()

    def stop(self) -> None:
        self._ahead.clear()
        if self._pool is not None:
            self._pool.stop()

    @property
    def _takes_many(self) -> bool:
        return any(name in self._parameters for name in _SIGNS_OF_MANY)

    @property
    def _takes_all(self) -> bool:
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in self._parameters.values())

    def _own_names(self) -> list[str]:
        """Parameters that neither the trajectories nor the options fill."""
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [name for name, parameter in self._parameters.items() if parameter.kind in kinds]
        filled = {*self.options, *(_OF_MANY if self._takes_many else names[:1])}
        return [name for name in names if name not in filled]

    def _columns_of(self, trajectory: Trajectory) -> dict[str, Any]:
        """The fields of a row that the function takes.

        Raises:
            TypeError: if one is missing that it needs.
        """
        columns = trajectory.prompt.columns
        if missing := sorted(self.columns - columns.keys()):
            raise TypeError(
                f"{self.function} needs the column {missing[0]!r}, which data.source.columns must list, got "
                f"{', '.join(columns) or 'none'} for prompt {trajectory.prompt.id!r}"
            )
        taken = (columns if self._takes_all else columns.keys() & set(self._own_names())) - self.options.keys()
        return {name: value for name, value in columns.items() if name in taken}

    def _score_many(self, trajectories: Sequence[Trajectory]) -> list[RewardResult]:
        rows = [self._columns_of(trajectory) for trajectory in trajectories]
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain(*rows))}
        lists = {
            name: list(map(of, trajectories))
            for name, of in _OF_MANY.items()
            if self._takes_all or name in self._parameters
        }
        values = self._run(**{**columns, **lists, **self.options})
        if not isinstance(values, Iterable) or len(results := list(values)) != len(trajectories):
            raise TypeError(
                f"{self.function} must return a value a trajectory, {len(trajectories)}, got {values!r:.200}"
            )
        return [RewardResult(0.0) if value is None else self._result(value) for value in results]

    def _run(self, *arguments: Any, **options: Any) -> Any:
        if self._pool is None:
            return self._function(*arguments, **options)
        return self._pool.call(self.timeout_s, *arguments, **options)

    def _result(self, value: object) -> RewardResult:
        if isinstance(value, RewardResult):
            return value
        if self._pool is not None and isinstance(value, dict) and value.keys() == _RESULT:
            return RewardResult(**value)
        if not isinstance(value, SupportsFloat):
            raise TypeError(f"{self.function} must return a number or a RewardResult, got {value!r}")
        return RewardResult(float(value))


def as_reward(reward: Reward | Callable[..., Any]) -> Reward:
    """The reward; a plain function, of one trajectory or of many, becomes one.

    Args:
        reward: a reward, or a function as `FunctionReward` takes it.

    Raises:
        ValueError: if it is neither.
    """
    return reward if isinstance(reward, Reward) else FunctionReward(reward)
