"""``appo plan --hours``: how long a run takes, and what of it is waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jsonargparse import Namespace

from appo.commands.ablate.runs import flatten
from appo.commands.plan.devices import Device
from appo.commands.plan.plan import cache_tokens
from appo.commands.plan.probe import Probe
from appo.commands.plan.settings import RunSettings
from appo.commands.plan.size import PolicySize
from appo.commands.plan.time import PHASES, Lengths, TimePlan, Workload, plan_time
from appo.training.callbacks import RolloutCallback
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule

_SAME = ("model.policy", "rollout.engine.class_path")
"""Keys by which the seconds of a probe say something of a run."""


def workload(module: APPOModule, data: RolloutDataModule, rollout: RolloutCallback, lengths: Lengths) -> Workload:
    """What an iteration of a run does.

    Args:
        module: with the settings of section ``model``.
        data: of section ``data``.
        rollout: of section ``rollout``.
        lengths: of its trajectories.
    """
    branching, has_branches = rollout.branching, rollout.branching.num_branches > 0
    per_minibatch = branching.when == "minibatch" and has_branches
    parts = data.num_minibatches if per_minibatch else 1
    reads = module.loss.needs_old_log_probs or (has_branches and rollout.scorer.reads_log_probs)
    return Workload(
        prompts=data.prompts_per_iteration,
        roots=branching.num_roots,
        branches=branching.num_branches,
        rounds=parts * branching.rounds,
        syncs=parts,
        forward_passes=int(reads) + int(module.loss.needs_reference),
        update_epochs=data.update_epochs,
        trains_branches=branching.train_on != "roots",
        lengths=lengths,
    )


def workload_of_probe(probe: Probe, work: Workload) -> Workload:
    """What an iteration of a short run did, that another run is planned by.

    Args:
        probe: the short run.
        work: of the run that is planned.
    """
    config = flatten(probe.config)
    prompts = config["data.prompts_per_iteration"]
    parts = prompts // (config.get("data.prompts_per_minibatch") or prompts)
    per_minibatch = config["rollout.branching.when"] == "minibatch"
    rounds = (parts if per_minibatch else 1) * config["rollout.branching.rounds"]
    roots = config["rollout.branching.num_roots"]
    return replace(
        work,
        prompts=prompts,
        roots=roots,
        branches=config["rollout.branching.num_trajectories"] - roots,
        rounds=rounds,
        syncs=parts if per_minibatch else 1,
        update_epochs=config["data.update_epochs"],
        trains_branches=config["rollout.branching.train_on"] != "roots",
        lengths=probe.lengths,
    )


def plan_hours(size: PolicySize, run: RunSettings, work: Workload, device: Device, probe: Probe | None) -> TimePlan:
    """The time of an iteration, by the phases of a probe where there is one.

    Args:
        size: of the policy.
        run: its settings.
        work: of an iteration.
        device: that all of it runs on.
        probe: a short run of the same policy with the same engine, whose seconds say by how much each phase misses its
            roofline.
    """
    at_once = _at_once(size, run, work)
    plan = plan_time(size, run, work, device, at_once)
    if probe is None:
        return plan
    short = workload_of_probe(probe, work)
    ideal = plan_time(size, replace(run, num_gpus=probe.processes), short, device, at_once)
    factors = {
        phase: seconds / ideal.seconds[phase] for phase, seconds in probe.seconds.items() if ideal.seconds[phase] > 0.0
    }
    per_trajectory = (short.roots + short.branches) * short.prompts / probe.processes
    trajectories = (work.roots + work.branches) * work.prompts / run.num_gpus
    return plan.scaled(factors, probe.other_s * trajectories / per_trajectory)


def is_measured_by(probe: Probe, config: Mapping[str, Any]) -> bool:
    """Whether the seconds of a probe hold for a run, and not its lengths alone.

    Args:
        probe: the short run.
        config: of the run that is planned.
    """
    mine, theirs = flatten(config), flatten(probe.config)
    return all(mine.get(key) == theirs.get(key) for key in _SAME)


def describe_hours(plan: TimePlan, run: RunSettings, trainer: Namespace, price: float, is_measured: bool) -> str:
    """Writes how long an iteration takes, and the run, and what it costs.

    Args:
        plan: of an iteration.
        run: its settings.
        trainer: section ``trainer`` of the config.
        price: of a GPU and hour; 0 tells of none.
        is_measured: whether a short run has said how near phases come to their roofline.
    """
    title = "seconds of an iteration, by a short run" if is_measured else "seconds of an iteration"
    rows = [f"{name:46}{plan.seconds[name]:13.2f}" for name in PHASES if plan.seconds[name] > 0.0]
    lines = [
        f"{title:46}",
        *rows,
        f"{'all':46}{plan.total_s:13.2f}",
        "",
        f"{plan.tokens:,.0f} tokens are sampled an iteration, {plan.tokens / plan.total_s:,.0f} a second",
        f"the trainer waits {plan.trainer_waits:.0%} of an iteration; of sampling, {_tail(plan):.0%} passes after the "
        "last trajectory has begun, with fewer and fewer open",
    ]
    if not is_measured:
        lines.append("an estimate by the roofline, and no more; --probe takes a short run that has measured it")
    iterations = trainer.max_epochs or -1
    if iterations > 0:
        hours = iterations * plan.total_s / 3600.0
        cost = f", {price * hours * run.num_gpus:,.2f} at {price:g} a GPU hour" if price else ""
        gpu_hours = f", {hours * run.num_gpus:,.2f} GPU hours" if run.num_gpus > 1 else ""
        lines.append(f"hours: {hours:,.2f} for {iterations:,} iterations{gpu_hours}{cost}")
    return "\n".join(lines)


def _tail(plan: TimePlan) -> float:
    return plan.tail_s / plan.seconds["sampling"]


def _at_once(size: PolicySize, run: RunSettings, work: Workload) -> int | None:
    """Trajectories that an engine has open at most, by its settings and its cache."""
    tokens = cache_tokens(size, run)
    if tokens is None:
        return run.engine.max_batch_size
    lengths = work.lengths
    by_cache = int(tokens / (lengths.prompt + lengths.sampled + lengths.tools))
    return max(1, min(run.engine.max_batch_size, by_cache))
