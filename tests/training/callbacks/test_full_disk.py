"""A disk that is full ends a run with what was trained before, whole."""

from __future__ import annotations

import resource
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from tests.small_run import run

OPTIONS = ("--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens")


class FullDisk(L.Callback):
    """From the second iteration on the kernel refuses to let any file grow beyond a size.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))

    def on_exception(self, trainer, pl_module, exception) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [50_000, 500], ids=["checkpoint", "everything"])
def test_a_run_on_a_full_disk_goes_on_where_it_was_whole(tmp_path, policy_folder, size):
    folder = tmp_path / "full"
    try:
        with pytest.raises(OSError, match="File too large"):
            run(
                "fit", folder, policy_folder, *OPTIONS,
                "--trainer.callbacks=tests.training.callbacks.test_full_disk.FullDisk",
                f"--trainer.callbacks.size={size}",
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    run("fit", folder, policy_folder, *OPTIONS, "--ckpt_path=last")
    run("fit", tmp_path / "whole", policy_folder, *OPTIONS)
    resumed, whole = (load_file(Path(name) / "policy/model.safetensors") for name in (folder, tmp_path / "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
