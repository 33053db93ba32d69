"""Metrics over evaluated trajectories."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean

from appo.core.trajectory import RewardResult, Trajectory
from appo.distributed import comm
from appo.rewards.final import answer_groups

Evaluated = Sequence[tuple[Trajectory, RewardResult | None]]
"""Finished trajectories with what the reward says of them, None where no answer is known; all those of a prompt are in
one batch."""

_Z95 = 1.959963984540054
"""Standard deviations on each side of the mean of a normal distribution that hold 95 % of it."""

_OF_TOOL, _CALLS = "tool_calls_", "tool calls of trajectories with an accuracy"
"""Names, or how they begin, of what is no mean over trajectories."""

RIGHT = 1.0 - 1e-6
"""Accuracy from which on a trajectory counts as right."""


@dataclass
class Moments:
    """Number, sum and sum of squares of values, which say their mean and how sure it is.

    They are numbers of Python, and of several processes those of each add up: whatever device a process trains on and
    whichever metrics it has met, all of them end with the same ones.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Takes in a value."""
        self += Moments(1, value, value * value)

    def __iadd__(self, other: Moments) -> Moments:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        return self

    @property
    def mean(self) -> float:
        """Of all values."""
        return self.total / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean of values in [0, 1], with the normal approximation; one alone says nothing."""
        if self.count == 1:
            return 0.0, 1.0
        variance = max(0.0, self.squares / self.count - self.mean**2) / (self.count - 1)
        half = _Z95 * sqrt(variance)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


class EvaluationMetrics:
    """What is measured of evaluated trajectories, by name.

    Means over trajectories: `reward` and each of its parts, `response_length`, `tool_calls` (also of each tool, as
    `tool_calls_<name>`), `tool_use` (the share with a call), `tool_failures`, `finished`, and accuracy by source of the
    prompt (`accuracy/<source>`). Where the reward tells right from wrong: `pass@1` with its 95 % interval
    (`pass@1_low`, `pass@1_high`), `pass@k` for powers of two up to the number of trajectories of a prompt and for that
    number, `maj@k` likewise where the reward names answers, and `tool_productivity`. `num_trajectories` counts them.
    """

    def __init__(self) -> None:
        self._moments: dict[str, Moments] = defaultdict(Moments)

    def update(self, batch: Evaluated) -> None:
        """Takes in finished trajectories; those that are not scored do not count."""
        by_prompt: dict[str, list[RewardResult]] = defaultdict(list)
        for trajectory, result in batch:
            if result is None:
                continue
            by_prompt[trajectory.prompt.id].append(result)
            tools = Counter(f"{_OF_TOOL}{call.tool}" for call in trajectory.tool_calls)
            for name, value in {**_values(trajectory, result), **tools}.items():
                self._moments[name].add(value)
        for results in by_prompt.values():
            if all("accuracy" in result.parts for result in results):
                self._update_prompt(results)

    def _update_prompt(self, results: Sequence[RewardResult]) -> None:
        num_right = sum(result.parts["accuracy"] >= RIGHT for result in results)
        votes = answer_groups([result.answer for result in results])
        accuracies = [result.parts["accuracy"] for result in results]
        for k in _ks(len(results)):
            self._moments[f"pass@{k}"].add(pass_at_k(num_right, len(results), k))
            if k > 1 and any(vote is not None for vote in votes):
                self._moments[f"maj@{k}"].add(majority_accuracy(votes[:k], accuracies[:k]))

    def moments(self) -> dict[str, Moments]:
        """What the values are computed from, by name; `merge` takes it in again."""
        return dict(self._moments)

    def merge(self, moments: Mapping[str, Moments]) -> None:
        """Takes in what others have measured, of other prompts."""
        for name, values in moments.items():
            self._moments[name] += values

    def compute(self) -> dict[str, float]:
        """The values since the last `reset`, by name, over all processes, which call it together."""
        of_all = EvaluationMetrics()
        for part in comm.all_gather(self.moments()):
            of_all.merge(part)
        return of_all.compute_own()

    def compute_own(self) -> dict[str, float]:
        """The values of this process alone."""
        moments = self.moments()
        calls = moments.pop(_CALLS, None)
        means = {name: values.mean for name, values in moments.items()}
        number = moments["reward"].count
        for name in [name for name in means if name.startswith(_OF_TOOL)]:
            means[name] = moments[name].total / number
        if calls is not None:
            means["tool_productivity"] = productivity(means["accuracy"], calls.mean)
        if "pass@1" in means:
            means["pass@1_low"], means["pass@1_high"] = moments["pass@1"].interval
        return dict(sorted(means.items())) | {"num_trajectories": float(number)}

    def reset(self) -> None:
        """Forgets everything."""
        self._moments.clear()


def pass_at_k(num_right: int, num: int, k: int) -> float:
    """Probability that at least one of `k` trajectories of a prompt is right, without bias.

    ``1 - C(n - c, k) / C(n, k)``, `c` of `n` trajectories being right.

    See "Evaluating Large Language Models Trained on Code" (https://arxiv.org/abs/2107.03374), Eq. (1).

    Args:
        num_right: trajectories that are right.
        num: of all, at least `k`.
        k: trajectories that are drawn.
    """
    return 1.0 - comb(num - num_right, k) / comb(num, k)


def productivity(accuracy: float, calls: float) -> float:
    """Accuracy for the tool calls it took, in percent: ``100 * accuracy * n / (n + 0.1)`` with `n` calls on average.

    The measure of the APPO authors' evaluation; 0 without tool calls.
    """
    return 100.0 * accuracy * calls / (calls + 0.1)


def majority_accuracy(votes: Sequence[int | None], accuracies: Sequence[float]) -> float:
    """Accuracy of the answer that most trajectories of a prompt give; the mean over those that are tied.

    Args:
        votes: number of the answer that each gives, as `answer_groups` counts them; those without one do not vote, and
            without any vote the accuracy is 0.
        accuracies: of each; that of an answer is the mean over those that give it.
    """
    by_answer: dict[int, list[float]] = defaultdict(list)
    for vote, accuracy in zip(votes, accuracies, strict=True):
        if vote is not None:
            by_answer[vote].append(accuracy)
    most = max(map(len, by_answer.values()), default=0)
    tied = [fmean(given) for given in by_answer.values() if len(given) == most]
    return fmean(tied) if tied else 0.0


def _values(trajectory: Trajectory, result: RewardResult) -> dict[str, float]:
    """What is averaged over trajectories."""
    values = {
        "reward": result.reward,
        **result.parts,
        "response_length": float(trajectory.response_length),
        "tool_calls": float(len(trajectory.tool_calls)),
        "tool_use": float(bool(trajectory.tool_calls)),
        "tool_failures": float(sum(call.failure is not None for call in trajectory.tool_calls)),
        "finished": float(trajectory.finish_reason == "eos"),
    }
    if "accuracy" in result.parts:
        values[_CALLS] = float(len(trajectory.tool_calls))
        if trajectory.prompt.source:
            values[f"accuracy/{trajectory.prompt.source}"] = result.parts["accuracy"]
    return values


def _ks(num: int) -> list[int]:
    """Powers of two up to a number, and the number."""
    return sorted({*(2**i for i in range(num.bit_length()) if 2**i <= num), num})
