"""What a training tells a person: with what it begins, and at its end where things are and how to go on."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import lightning as L

from appo.training.callbacks.common import parts_of, run_folder
from appo.training.callbacks.evaluation import rollout_callback
from appo.training.callbacks.termination import was_ended
from appo.training.datamodule import RolloutDataModule
from appo.training.memory_errors import UpdateMemoryError, advice, is_spent
from appo.training.module import APPOModule

log = logging.getLogger(__name__)

_LAST = "checkpoints/last.ckpt"


class RunSummary(L.Callback):
    """Logs one screen before the first iteration of a training, one behind the last, and how a failed one goes on."""

    def __init__(self) -> None:
        self._config = Path()
        self._has_trained = False
        self._has_warned = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._has_trained = False
        self._config = Path(trainer.log_dir or trainer.default_root_dir) / "config.yaml"  # asks all processes
        if trainer.is_global_zero:
            module, data = parts_of(trainer, pl_module)
            log.info("this run trains\n%s", _table(_contents(trainer, module, data)))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._has_trained = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rollout = rollout_callback(trainer)
        tools = rollout.sampler.tools.tools
        called = any(trajectory.tool_calls for part in rollout.iteration.collected for trajectory in part.trajectories)
        if tools and not called and not self._has_warned:
            self._has_warned = True
            log.warning(
                "no trajectory of iteration %d called a tool (%s): see its text in the trajectories of the run, and "
                "whether the prompts say how calls are written",
                trainer.current_epoch,
                ", ".join(tools),
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        module, data = parts_of(trainer, pl_module)
        if not self._has_trained:
            log.info("this run is finished: %s", _what_ended(trainer))
        log.info("what the run has left\n%s", _table(_results(trainer, self._config)))
        commands = [self._resumption] if was_ended(trainer) else _next_commands(trainer, module, data, self._config)
        if commands:
            log.info("what to do next\n%s", "\n".join(f"  {command}" for command in commands))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not trainer.is_global_zero:
            return
        if is_spent(exception) and not isinstance(exception, UpdateMemoryError):  # which says so itself
            log.error(advice(exception, parts_of(trainer, pl_module)[0].max_tokens_per_microbatch))
        if self._has_trained and (run_folder(trainer) / _LAST).exists() and self._config.exists():
            log.error(
                "the run was cut off in iteration %d by %s; without the cause it goes on with\n  %s",
                trainer.current_epoch,
                type(exception).__name__,
                self._resumption,
            )

    @property
    def _resumption(self) -> str:
        return _command("fit", "--config", self._config, "--ckpt_path", "last")


def _contents(trainer: L.Trainer, module: APPOModule, data: RolloutDataModule) -> dict[str, str]:
    rollout = rollout_callback(trainer)
    assert module.policy is not None
    num_parameters = sum(parameter.numel() for parameter in module.policy.parameters())
    dtype = str(module.policy.dtype).removeprefix("torch.")
    counts = ", ".join(f"{number:,} {split}" for split, number in data.num_prompts.items())
    branching, sampler = rollout.branching, rollout.sampler
    end = f"trainer.max_epochs={trainer.max_epochs}"
    if rollout.stop_after_tokens is not None:
        end += f", rollout.stop_after_tokens={rollout.stop_after_tokens}"
    contents = {
        "policy": f"{module.policy_folder}: {type(module.policy).__name__}, {num_parameters:,} parameters in {dtype}",
        "adapter": "" if module.lora is None else f"rank {module.lora.rank}, {_num_trained(module):,} parameters",
        "data": f"{_name(data.source)}: prompts {counts}; {data.prompts_per_iteration} an iteration",
        "tools": f"{', '.join(sampler.tools.tools) or 'none'}; {_name(sampler.syntax)}",
        "engine": _name(sampler.engine),
        "reward": _name(sampler.reward.reward),
        "rollouts": f"{branching.num_roots} roots and {branching.num_branches} branches a prompt, "
        f"{rollout.limits.max_response_tokens:,} tokens at most",
        "method": f"{_name(rollout.scorer)}, {_name(rollout.advantage)}, {_name(module.loss)}",
        "training": f"until {end}; {trainer.world_size} x {module.device.type}, precision {trainer.precision}",
        "results": str(run_folder(trainer)),
    }
    return {name: text for name, text in contents.items() if text}


def _results(trainer: L.Trainer, config: Path) -> dict[str, str]:
    folder = run_folder(trainer)
    places = {
        "policy": folder / "policy",
        "checkpoint": folder / _LAST,
        "trajectories": folder / "trajectories",
        "metrics": folder / "csv",
        "curves": folder / "tensorboard",
        "config": config,
    }
    found = {name: str(path) for name, path in places.items() if path.exists()}
    if "curves" in found:
        found["curves"] = f"tensorboard --logdir {shlex.quote(found['curves'])}"
    return found


def _next_commands(trainer: L.Trainer, module: APPOModule, data: RolloutDataModule, config: Path) -> list[str]:
    """What a user may type: a test of both policies, a report of them, and more iterations."""
    if not config.exists():
        return []
    folder = run_folder(trainer)
    before, after = folder / "before", folder / "after"
    commands = []
    if "test" in data.source.splits:
        test = ("test", "--config", config, *(("--ckpt_path", "null") if trainer.ckpt_path else ()))
        # The adapter is merged into what the run leaves.
        trained = ("--model.policy", folder / "policy", *(("--model.lora", "null") if module.lora else ()))
        commands += [
            _command(*test, "--trainer.default_root_dir", before),
            _command(*test, *trained, "--trainer.default_root_dir", after),
            _command("report", "--run", folder, "--before", before, "--after", after),
        ]
    if (folder / _LAST).exists() and (trainer.max_epochs or -1) > 0:
        more = ("--ckpt_path", "last", f"--trainer.max_epochs={2 * (trainer.max_epochs or 1)}")
        commands.append(_command("fit", "--config", config, *more))
    return commands


def _what_ended(trainer: L.Trainer) -> str:
    rollout = rollout_callback(trainer)
    if rollout.is_budget_spent:
        return f"rollout.stop_after_tokens={rollout.stop_after_tokens} is reached, a larger number goes on"
    return (
        f"trainer.max_epochs={trainer.max_epochs} is reached, --trainer.max_epochs={2 * trainer.current_epoch} goes on"
    )


def _num_trained(module: APPOModule) -> int:
    return sum(parameter.numel() for parameter in module.trained().values())


def _name(component: object) -> str:
    return type(component).__name__


def _command(*words: Any) -> str:
    return shlex.join(["appo", *map(str, words)])


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
