"""Commands that run Lightning's trainer, and what every run has beside what its config says."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from appo import __version__
from appo.advantages import AdvantageEstimator
from appo.commands.errors import in_one_line
from appo.commands.record.record import RecordedConfig
from appo.commands.run_folder import reserved
from appo.commands.trainer_parser import TrainerParser
from appo.distributed.checkpoint import check_whole, trust_no_checkpoint
from appo.distributed.fsdp import OFFLOADING_BACKENDS, FSDP2Strategy
from appo.losses import Loss
from appo.rewards import Reward
from appo.scorers import Scorer
from appo.sft import SupervisedDataModule, SupervisedModule
from appo.tools import CallSyntax
from appo.training.callbacks import (
    EndOnSignal,
    EvaluationCallback,
    ExportPolicy,
    HealthCheck,
    IterationCheckpoints,
    IterationProgress,
    LastCheckpoint,
    RolloutCallback,
    RunSummary,
)
from appo.training.callbacks.checkpoints import keep_in
from appo.training.callbacks.common import leaves_files
from appo.training.callbacks.termination import (
    INTERRUPTED,
    TERMINATED,
    ends_when_interrupted,
    requeue_if_asked,
    was_ended,
)
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule
from appo.training.trainer_checks import check_trainer_options

log = logging.getLogger(__name__)

_RESTARTS = "SLURM_RESTART_COUNT"
"""Where SLURM counts how often it has started a job again."""

_CONNECTING_S = 120.0
"""Seconds that processes may take to connect, which is under the time-out of their collectives."""


class RunFolderCLI(LightningCLI):
    """Builds what a command trains or evaluates; a run keeps everything in one folder, ``trainer.default_root_dir``.

    Args:
        command: its name in usage lines.
        args: its options, as on the command line.
        method: of the trainer.
        model_class: of the section ``model``.
        datamodule_class: of the section ``data``.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str],
        method: str,
        model_class: type[L.LightningModule],
        datamodule_class: type[L.LightningDataModule],
    ) -> None:
        self.method = method
        super().__init__(
            model_class,
            datamodule_class,
            args=list(args),
            run=False,
            parser_class=type("CommandParser", (TrainerParser,), {"command": f"appo {command}"}),
            # Interpolations see the merged config, not one file: an override reaches every ${...} that names it.
            parser_kwargs={"parser_mode": "omegaconf+", "dump_header": [f"appo {__version__}"]},
            save_config_callback=RecordedConfig,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
        )

    def run(self) -> None:
        """Calls the method of the trainer; a training has its folder for itself."""
        with ExitStack() as held:
            held.enter_context(ends_when_interrupted())
            if self.method == "fit" and leaves_files(self.trainer):
                folder = Path(self.trainer.default_root_dir)
                held.enter_context(reserved(folder, self.trainer.is_global_zero))
            self._run()

    def _run(self) -> None:
        self._check_checkpoint()
        if self.config.ckpt_path:  # of that folder if the run goes on, of another one if it is evaluated
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", "The dirpath has changed from")
        options = {name: self.config_init[name] for name in self.method_options}
        try:
            getattr(self.trainer, self.method)(model=self.model, datamodule=self.datamodule, **options)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):
                raise SystemExit(INTERRUPTED) from end
            if not self.trainer.received_sigterm:
                raise
        if self.trainer.received_sigterm or was_ended(self.trainer):  # Lightning ends as if all had been done
            requeue_if_asked(self.trainer)
            raise SystemExit(TERMINATED)

    def _check_checkpoint(self) -> None:
        """Looks at the checkpoint before anything is started for it; a job that was requeued goes on by itself."""
        if self.method == "fit" and not self.config.ckpt_path and os.environ.get(_RESTARTS, "0") != "0":
            log.warning("%s=%s: the run goes on, as by --ckpt_path last", _RESTARTS, os.environ[_RESTARTS])
            self.config.ckpt_path = self.config_init.ckpt_path = "last"
        if self.config.ckpt_path == "last":
            self._check_last()
        elif self.config.ckpt_path and Path(self.config.ckpt_path).exists():
            check_whole(Path(self.config.ckpt_path))

    def _check_last(self) -> None:
        """Says plainly that there is no last checkpoint: Lightning goes on without, and advises what every run does."""
        dirs = {Path(self.trainer.default_root_dir) / "checkpoints"}
        dirs |= {
            Path(c.dirpath) for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath
        }
        found = sorted(path for folder in dirs for path in folder.glob("last*"))
        if whole := [path for path in found if path.exists()]:
            check_whole(max(whole, key=lambda path: path.stat().st_mtime))
            return
        if found:
            raise FileNotFoundError(f"ckpt_path=last must find what {found[0]} points to, got no {found[0].readlink()}")
        places = ", ".join(sorted(map(str, dirs)))
        if self.method != "fit":
            raise FileNotFoundError(f"ckpt_path=last must find a checkpoint in {places}, got none")
        log.warning("ckpt_path=last finds no checkpoint in %s: the run begins anew", places)
        warnings.filterwarnings("ignore", ".*there is no last checkpoint available")

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument("--config", action="config", help="YAML file; several are merged from left to right.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.method_options = parser.add_method_arguments(
            L.Trainer, self.method, skip=set(LightningCLI.subcommands()[self.method])
        )
        # Lightning leaves it to torch.
        parser.set_defaults({"weights_only": True})

    def instantiate_classes(self) -> None:
        with in_one_line():
            if self.config.weights_only is not True:
                raise ValueError(f"weights_only must be true: no checkpoint is trusted, got {self.config.weights_only}")
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init.trainer
        config.default_root_dir = config.default_root_dir or "runs/appo"
        folder = Path(config.default_root_dir)
        is_tried = bool(config.fast_dev_run or config.barebones)  # leaves nothing
        if not config.barebones:
            config.logger = _loggers(config.logger, folder)
        callbacks = _callbacks(config)
        # Beside those that a user adds, or a run that is cut off could not go on.
        keeps_last = any(isinstance(callback, ModelCheckpoint) and callback.save_last for callback in callbacks)
        if config.enable_checkpointing is not False and not keeps_last and not is_tried:
            callbacks.append(LastCheckpoint())
        keep_in(folder, callbacks)
        has_progress = any(isinstance(callback, ProgressBar) for callback in callbacks)
        with_progress = config.enable_progress_bar is not False and not has_progress
        config.callbacks = [*callbacks, *self.run_callbacks(with_progress)]
        trainer = super().instantiate_trainer(**kwargs)
        trust_no_checkpoint(trainer.strategy)
        # What an epoch has logged is shown and saved after it was logged.
        ordered: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer, not declared
        ordered.sort(
            key=lambda callback: (
                isinstance(callback, ModelCheckpoint),
                isinstance(callback, HealthCheck | IterationProgress),
            )
        )
        return trainer

    def with_timeout(self, strategy: Any, timeout: timedelta) -> Any:
        """The strategy that a name stands for, with a time-out of its own; whatever else is given as it is."""
        if strategy == "ddp":
            return DDPStrategy(timeout=timeout)
        if strategy not in ("fsdp", "fsdp2"):
            return strategy
        if strategy == "fsdp":
            log.info("trainer.strategy=fsdp shards with FSDP2, which has taken the place of torch's first FSDP")
        offloads = torch.cuda.is_available() and self.config_init.model.sharding.cpu_offload
        return FSDP2Strategy(process_group_backend=OFFLOADING_BACKENDS if offloads else None, timeout=timeout)

    def run_callbacks(self, with_progress: bool) -> list[L.Callback]:
        """What belongs to every run of the command."""
        return []


class AppoCLI(RunFolderCLI):
    """Reinforcement learning: a ``rollout`` section beside ``model``, ``data`` and ``trainer``."""

    def __init__(self, command: str, args: Sequence[str], method: str | None = None) -> None:
        super().__init__(command, args, method or command, APPOModule, RolloutDataModule)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init.trainer
        check_trainer_options(config, _callbacks(config))
        timeout_s = max(_CONNECTING_S, self.config_init.rollout.rank_timeout_s)
        config.strategy = self.with_timeout(config.strategy, timedelta(seconds=timeout_s))
        return super().instantiate_trainer(**kwargs)

    def run_callbacks(self, with_progress: bool) -> list[L.Callback]:
        callbacks = [
            IterationCheckpoints(),
            EvaluationCallback(),
            ExportPolicy(),
            RunSummary(),
            EndOnSignal(),
        ]
        return [*callbacks, HealthCheck(), *([IterationProgress()] if with_progress else [])]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(RolloutCallback, "rollout")
        parser.set_defaults(
            {
                "trainer.log_every_n_steps": 1,
                "rollout.engine": {"class_path": "HFEngine"},
                **_default_components("model", APPOModule),
                **_default_components("rollout", RolloutCallback),
            }
        )
        parser.link_arguments("model.policy", "data.tokenizer")


def _default_components(section: str, built: type) -> dict[str, dict[str, str]]:
    """The components that a class takes by default, as a config names them: their options can then be set alone."""
    return {
        f"{section}.{name}": {"class_path": type(parameter.default).__name__}
        for name, parameter in inspect.signature(built).parameters.items()
        if isinstance(parameter.default, (Loss, Scorer, AdvantageEstimator, Reward, CallSyntax))
    }


class SupervisedCLI(RunFolderCLI):
    """Supervised training on demonstrations."""

    def __init__(self, command: str, args: Sequence[str]) -> None:
        super().__init__(command, args, "fit", SupervisedModule, SupervisedDataModule)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init.trainer
        config.strategy = self.with_timeout(config.strategy, default_pg_timeout)
        return super().instantiate_trainer(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.policy", "data.tokenizer")


def _callbacks(trainer: Namespace) -> list[L.Callback]:
    """Those that the options of the trainer name: one, several or none."""
    given = trainer.callbacks or ()
    return [given] if isinstance(given, L.Callback) else list(given)


def writes_nothing(trainer: Namespace) -> None:
    """Leaves out what a trainer writes and shows by itself, for a command that does so in its own way.

    Args:
        trainer: its options, callbacks that the config of a training names among them.
    """
    trainer.logger = trainer.enable_checkpointing = trainer.enable_progress_bar = False
    trainer.callbacks = [callback for callback in _callbacks(trainer) if not isinstance(callback, ModelCheckpoint)]


def _loggers(given: Any, folder: Path) -> Any:
    """The loggers of a run: a CSV one is always among them, which `appo report`, `view` and `ablate` read."""
    if given is False:
        return False
    csv = CSVLogger(folder, name="csv")
    if given in (None, True):
        return [csv, TensorBoardLogger(folder, name="tensorboard")]
    # The first one says where the config lies.
    return [csv, *([given] if isinstance(given, Logger) else given)]
