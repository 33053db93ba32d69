"""What several callbacks need of a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import lightning as L

from appo.distributed import comm
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule

Kind = TypeVar("Kind", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Kind]) -> list[Kind]:
    """The callbacks of a trainer that are of a class."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer, not declared
    return [callback for callback in callbacks if isinstance(callback, kind)]


def run_folder(trainer: L.Trainer) -> Path:
    """Where a run puts its files."""
    return Path(trainer.default_root_dir)


def leaves_files(trainer: L.Trainer) -> bool:
    """Whether what a run does now is to be kept: not what ``fast_dev_run`` or the sanity check tries."""
    return not trainer.fast_dev_run and not trainer.sanity_checking  # type: ignore[attr-defined]  # not declared


def trajectory_file(trainer: L.Trainer, stage: str) -> Path:
    """The file of trajectories of a stage; each of several processes has one of its own.

    The name has the number of the optimizer steps that were taken where an iteration is validated before its end.
    """
    is_within = stage == "validation" and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    step = f"_step_{trainer.global_step:05d}" if is_within and trainer.state.fn == "fit" else ""
    of_rank = f"_rank_{comm.rank():05d}" if comm.num_ranks() > 1 else ""
    return run_folder(trainer) / f"trajectories/{stage}_{trainer.current_epoch:05d}{step}{of_rank}.jsonl.zst"


def parts_of(trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[APPOModule, RolloutDataModule]:
    """The module and the data module of a run.

    Raises:
        TypeError: if they are of other classes.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer, not declared
    if not isinstance(pl_module, APPOModule) or not isinstance(data, RolloutDataModule):
        raise TypeError(
            "callbacks of appo must run with APPOModule and RolloutDataModule, got "
            f"{type(pl_module).__name__} and {type(data).__name__}"
        )
    return pl_module, data
