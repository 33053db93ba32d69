"""What an iteration takes, by the roofline of engine and trainer and the shares of it that they reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from appo.commands.plan.devices import DECODING_SHARE, LINK_SHARE, PREFILL_SHARE, STEP_S, TRAINING_SHARE, Device
from appo.commands.plan.memory import cache_bytes
from appo.commands.plan.settings import RunSettings
from appo.commands.plan.size import PolicySize

PHASES = ("sampling", "log-probs", "update", "weight sync", "tools and others")

_STEPS = 64
"""Parts of a generation at whose beginning the number of open trajectories is counted."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of trajectories, means over roots.

    Attributes:
        prompt: of the prompt.
        sampled: that the policy writes.
        tools: that tools write.
        longest: of the longest one that the policy writes.
        branch_share: of a root's sampled tokens that a branch samples.
    """

    prompt: float
    sampled: float
    tools: float
    longest: float
    branch_share: float = 0.5

    def __post_init__(self) -> None:
        if not (self.prompt > 0 and self.sampled > 0 and self.tools >= 0):
            raise ValueError(f"lengths must be positive, got {self.prompt}, {self.sampled} and {self.tools} tokens")
        if not 0.0 < self.branch_share <= 1.0:
            raise ValueError(f"lengths.branch_share must lie in (0, 1], got {self.branch_share}")
        if self.longest < self.sampled:
            raise ValueError(f"lengths.longest must be at least the mean of {self.sampled}, got {self.longest}")


@dataclass(frozen=True)
class Workload:
    """What an iteration does, over all processes.

    Attributes:
        prompts: of an iteration.
        roots: trajectories of a prompt that are sampled from its beginning.
        branches: further ones.
        rounds: of branches, one after the other, in an iteration.
        syncs: of weights.
        forward_passes: without gradients, over all roots.
        update_epochs: passes of the update over what is trained.
        trains_branches: whether branches are trained, too.
        lengths: of trajectories.
    """

    prompts: int
    roots: int
    branches: int
    rounds: int
    syncs: int
    forward_passes: int
    update_epochs: int
    trains_branches: bool
    lengths: Lengths

    @property
    def sampled_tokens(self) -> float:
        """Tokens that engines sample."""
        return self.prompts * (self.roots + self.branches * self.lengths.branch_share) * self.lengths.sampled

    @property
    def root_tokens(self) -> float:
        """Distinct tokens of prompts and roots: those of a prompt are computed once."""
        return self.prompts * (self.lengths.prompt + self.roots * (self.lengths.sampled + self.lengths.tools))

    @property
    def branch_tokens(self) -> float:
        """Tokens of branches that are not their parents'."""
        return self.prompts * self.branches * self.lengths.branch_share * (self.lengths.sampled + self.lengths.tools)


@dataclass(frozen=True)
class TimePlan:
    """Seconds of an iteration.

    Attributes:
        seconds: by phase.
        tail_s: seconds of sampling in which fewer trajectories are open than an engine takes, or than there are.
        tokens: that are sampled.
    """

    seconds: Mapping[str, float]
    tail_s: float
    tokens: float

    @property
    def total_s(self) -> float:
        """Of the iteration."""
        return sum(self.seconds.values())

    @property
    def trainer_waits(self) -> float:
        """Share of the iteration in which the trainer has nothing to do."""
        return (self.seconds["sampling"] + self.seconds["tools and others"]) / self.total_s

    def scaled(self, factors: Mapping[str, float], other_s: float) -> TimePlan:
        """With phases that take so many times their roofline, and seconds in which none of them works."""
        seconds = {name: value * factors.get(name, 1.0) for name, value in self.seconds.items()}
        seconds["tools and others"] = other_s
        return replace(self, seconds=seconds, tail_s=self.tail_s * factors.get("sampling", 1.0))


def plan_time(size: PolicySize, run: RunSettings, work: Workload, device: Device, at_once: int | None) -> TimePlan:
    """The roofline of an iteration, with the shares of it that are usually reached.

    Sampling: engines have the trajectories in equal parts. A step of `b` open ones reads all weights and their keys and
    values, or computes ``2 b N`` operations, whichever takes longer, and takes `STEP_S` on top; prompts and results of
    tools take ``2 N`` a token. While more wait than an engine takes, its batch is full; of the last ones, with mean
    length `m` and longest `x`, a share of ``(1 - t / x)^(x / m - 1)`` is open after `t` steps, which adds up to `m`.
    Every round ends with such a tail.
    Log-probs take ``2 N`` operations a token, an update ``6 N``, with checkpointing ``8 N``; attention counts with the
    mean context.

    Args:
        size: of the policy.
        run: its settings.
        work: of an iteration.
        device: on which it runs.
        at_once: trajectories that one engine has open at most.
    """
    lengths, flops = work.lengths, device.flops * run.num_gpus
    training = _token_flops(size, lengths) / (TRAINING_SHARE * flops)
    trained = work.root_tokens + (work.branch_tokens if work.trains_branches else 0.0)
    backward = 3.0 + run.checkpointing
    roots_s, roots_tail_s = _generation(size, run, device, lengths, work.prompts * work.roots, 1.0, at_once)
    branches_s = branches_tail_s = 0.0
    if work.branches:
        share = work.prompts * work.branches / work.rounds
        each_s, each_tail_s = _generation(size, run, device, lengths, share, lengths.branch_share, at_once)
        branches_s, branches_tail_s = work.rounds * each_s, work.rounds * each_tail_s
    read = work.root_tokens - work.prompts * work.roots * lengths.sampled
    prefill_s = read * _token_flops(size, lengths) / (PREFILL_SHARE * flops)
    weights = size.num_weights * run.engine.num_bytes / run.engine.tensor_parallel
    return TimePlan(
        {
            "sampling": roots_s + branches_s + prefill_s,
            "log-probs": work.forward_passes * work.root_tokens * training,
            "update": work.update_epochs * backward * trained * training,
            "weight sync": work.syncs * weights / (LINK_SHARE * device.link),
            "tools and others": 0.0,
        },
        roots_tail_s + branches_tail_s,
        work.sampled_tokens,
    )


def _token_flops(size: PolicySize, lengths: Lengths) -> float:
    """Operations of a forward pass a token: matrices, and attention to half of the sequence on average."""
    context = (lengths.prompt + lengths.sampled + lengths.tools) / 2.0
    active = size.num_weights - (0 if size.head_is_tied else size.lm_head_weights)
    return 2.0 * active + 4.0 * size.num_layers * size.attention_size * context


def _generation(
    size: PolicySize, run: RunSettings, device: Device, lengths: Lengths, num: float, share: float, at_once: int | None
) -> tuple[float, float]:
    """Seconds of a generation, and those of them after the last trajectory has begun.

    Args:
        size: of the policy.
        run: its settings.
        device: that samples.
        lengths: of roots.
        num: trajectories over all engines.
        share: of a root's sampled tokens that each samples.
        at_once: trajectories that one engine has open at most.
    """
    engines = max(1, run.num_gpus // run.engine.tensor_parallel)
    num, mean, longest = num / engines, share * lengths.sampled, share * lengths.longest
    slots = min(num, at_once or num)
    full_s = max(0.0, num - slots) * mean / slots * _step_s(size, run, device, lengths, slots)
    exponent, tail_s = longest / mean - 1.0, 0.0
    for part in range(_STEPS):
        is_open = slots * (1.0 - (part + 0.5) / _STEPS) ** exponent
        tail_s += longest / _STEPS * _step_s(size, run, device, lengths, is_open)
    return full_s + tail_s, tail_s


def _step_s(size: PolicySize, run: RunSettings, device: Device, lengths: Lengths, num_open: float) -> float:
    context = lengths.prompt + (lengths.sampled + lengths.tools) / 2.0
    engine = run.engine
    read = size.num_weights * engine.num_bytes / engine.tensor_parallel
    read += max(1.0, num_open) * context * cache_bytes(size, engine.num_bytes, engine.tensor_parallel)
    compute = 2.0 * size.num_weights * num_open / engine.tensor_parallel / (PREFILL_SHARE * device.flops)
    return max(read / (DECODING_SHARE * device.bandwidth), compute) + STEP_S
