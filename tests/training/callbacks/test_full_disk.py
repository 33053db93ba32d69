"""A disk that is full ends a run with what was trained before, whole."""

from __future__ import annotations

import resource

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory, policy_folder) -> dict[str, torch.Tensor]:
    """Weights of the run that met no full disk."""
    folder = run("fit", tmp_path_factory.mktemp("whole"), policy_folder, *OPTIONS)
    return load_file(folder / "policy/model.safetensors")


@pytest.mark.parametrize(
    ("size", "options"),
    [(50_000, ()), (500, ()), (500, ("--rollout.save_trajectories=false",))],
    ids=["checkpoint", "trajectories", "logs"],
)
def test_a_run_on_a_full_disk_goes_on_where_it_was_whole(tmp_path, policy_folder, whole, size, options):
    folder = tmp_path / "full"
    try:
        with pytest.raises(OSError, match="File too large"):
            run(
                "fit", folder, policy_folder, *OPTIONS,
                "--trainer.callbacks=tests.training.callbacks.test_full_disk.FullDisk",
                f"--trainer.callbacks.size={size}", *options,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    run("fit", folder, policy_folder, *OPTIONS, "--ckpt_path=last")
    resumed = load_file(folder / "policy/model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
