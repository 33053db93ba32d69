"""Metrics over evaluated trajectories."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import comb

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric

from appo.core.trajectory import RewardResult, Trajectory

Evaluated = Sequence[tuple[Trajectory, RewardResult]]
"""Finished trajectories with what the reward says of them; all those of a prompt stand in one batch."""

_Z95 = 1.959963984540054
"""Standard deviations on each side of the mean of a normal distribution that hold 95 % of it."""

_PASS, _PRODUCTIVITY, _OF_TOOL, _NUMBER = "pass@", "tool_productivity", "tool_calls_", "num_trajectories"
"""Names, or how they begin, of what is no mean over trajectories."""

_RIGHT = 1.0 - 1e-6
"""Accuracy from which on a trajectory counts as right."""


class PassAtK(Metric):
    """Probability that at least one of `k` trajectories of a prompt is right, without bias, and its 95 % interval.

    ``mean over prompts of 1 - C(n - c, k) / C(n, k)``, `c` of `n` trajectories being right. The interval is that of a
    mean over prompts, with the normal approximation.

    See "Evaluating Large Language Models Trained on Code" (https://arxiv.org/abs/2107.03374), Eq. (1).

    Args:
        k: trajectories of a prompt.
    """

    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, num_right: int, num: int) -> None:
        """Takes in a prompt.

        Args:
            num_right: trajectories that are right.
            num: of all, at least `k`.
        """
        value = 1.0 - comb(num - num_right, self.k) / comb(num, self.k)
        self.total += value
        self.squares += value * value
        self.count += 1

    def compute(self) -> dict[str, Tensor]:
        mean = self.total / self.count
        # The sample variance of the mean; a single prompt says nothing about it.
        variance = (self.squares / self.count - mean.square()).clamp(min=0.0) / (self.count - 1).clamp(min=1)
        half = torch.where(self.count > 1, _Z95 * variance.sqrt(), 1.0)
        return {"mean": mean, "low": (mean - half).clamp(min=0.0), "high": (mean + half).clamp(max=1.0)}


class Productivity(Metric):
    """Accuracy for the tool calls it took, in percent: ``100 * accuracy * n / (n + 0.1)`` with `n` calls on average.

    The measure of the APPO authors' evaluation; 0 without tool calls.
    """

    right: Tensor
    calls: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "calls", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, accuracy: float, num_calls: int) -> None:
        """Takes in a trajectory."""
        self.right += accuracy
        self.calls += num_calls
        self.count += 1

    def compute(self) -> Tensor:
        accuracy, calls = self.right / self.count, self.calls / self.count
        return 100.0 * accuracy * calls / (calls + 0.1)


class EvaluationMetrics(nn.Module):
    """What is measured of evaluated trajectories, by name.

    Means over trajectories: `reward` and each of its parts, `response_length`, `tool_calls` (also of each tool, as
    `tool_calls_<name>`), `tool_use` (the share with a call), `tool_failures`, `finished`, and accuracy by source of the
    prompt (`accuracy/<source>`). Where the reward tells right from wrong: `pass@1` with its 95 % interval
    (`pass@1_low`, `pass@1_high`), `pass@k` for powers of two up to the number of trajectories of a prompt and for that
    number, `maj@k` likewise where the reward names answers, and `tool_productivity`. `num_trajectories` counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics = nn.ModuleDict()

    def update(self, batch: Evaluated) -> None:
        """Takes in finished trajectories."""
        by_prompt: dict[str, list[RewardResult]] = defaultdict(list)
        self._metric(_NUMBER).update(len(batch))
        for trajectory, outcome in batch:
            by_prompt[trajectory.prompt.id].append(outcome)
            for name, value in _values(trajectory, outcome).items():
                self._metric(name).update(value)
            for tool, count in Counter(call.tool for call in trajectory.tool_calls).items():
                self._metric(f"{_OF_TOOL}{tool}").update(count)
            if "accuracy" in outcome.parts:
                self._metric(_PRODUCTIVITY).update(outcome.parts["accuracy"], len(trajectory.tool_calls))
        for outcomes in by_prompt.values():
            if all("accuracy" in outcome.parts for outcome in outcomes):
                self._update_prompt(outcomes)

    def _update_prompt(self, outcomes: Sequence[RewardResult]) -> None:
        num_right = sum(outcome.parts["accuracy"] >= _RIGHT for outcome in outcomes)
        for k in _ks(len(outcomes)):
            self._metric(f"{_PASS}{k}").update(num_right, len(outcomes))
            if k > 1 and any(outcome.answer is not None for outcome in outcomes):
                self._metric(f"maj@{k}").update(majority_accuracy(outcomes[:k]))

    def compute(self) -> dict[str, Tensor]:
        """The values since the last `reset`, by name; with several processes, over all of them."""
        for name in self._names_of_all_processes():
            self._metric(name)
        values = {name: self._metric(name).compute() for name in sorted(self._names())}
        for name in values:
            if name.startswith(_OF_TOOL):
                values[name] = values[name] / values[_NUMBER]
        for name in [name for name in values if name.startswith(_PASS)]:
            interval = values.pop(name)
            values[name] = interval["mean"]
            if name == f"{_PASS}1":
                values |= {f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
        return values

    def reset(self) -> None:
        """Forgets everything."""
        self._metrics = nn.ModuleDict()

    def _names(self) -> list[str]:
        return [key.replace(":", ".") for key in self._metrics]

    def _names_of_all_processes(self) -> list[str]:
        """The metrics that any process has: all of them must take part when one is summed up, and in the same order."""
        names = self._names()
        if not (dist.is_available() and dist.is_initialized()):
            return names
        gathered: list[list[str]] = [[]] * dist.get_world_size()
        dist.all_gather_object(gathered, names)
        return sorted({name for part in gathered for name in part})

    def _metric(self, name: str) -> Metric:
        key = name.replace(".", ":")  # a module's name must not hold a dot
        if key not in self._metrics:
            self._metrics[key] = _make_metric(name)
        metric = self._metrics[key]
        assert isinstance(metric, Metric)
        return metric


def _make_metric(name: str) -> Metric:
    if name.startswith(_PASS):
        return PassAtK(int(name.removeprefix(_PASS)))
    if name == _NUMBER or name.startswith(_OF_TOOL):
        return SumMetric()
    return Productivity() if name == _PRODUCTIVITY else MeanMetric()


def majority_accuracy(outcomes: Sequence[RewardResult]) -> float:
    """Accuracy of the answer that most trajectories give; the mean over those that are tied.

    Args:
        outcomes: of one prompt; those without an answer do not vote, and without any vote the accuracy is 0.
    """
    votes = Counter(outcome.answer for outcome in outcomes if outcome.answer is not None)
    most = max(votes.values(), default=0)
    tied = {answer for answer, count in votes.items() if count == most}
    accuracy = {outcome.answer: outcome.parts["accuracy"] for outcome in outcomes if outcome.answer in tied}
    return sum(accuracy.values()) / max(1, len(accuracy))


def _values(trajectory: Trajectory, outcome: RewardResult) -> dict[str, float]:
    """What is averaged over trajectories."""
    values = {
        "reward": outcome.reward,
        **outcome.parts,
        "response_length": float(trajectory.response_length),
        "tool_calls": float(len(trajectory.tool_calls)),
        "tool_use": float(bool(trajectory.tool_calls)),
        "tool_failures": float(sum(call.failure is not None for call in trajectory.tool_calls)),
        "finished": float(trajectory.finish_reason == "eos"),
    }
    if trajectory.prompt.source and "accuracy" in outcome.parts:
        values[f"accuracy/{trajectory.prompt.source}"] = outcome.parts["accuracy"]
    return values


def _ks(num: int) -> list[int]:
    """Powers of two up to a number, and the number."""
    return sorted({*(2**i for i in range(num.bit_length()) if 2**i <= num), num})
