from __future__ import annotations

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest
import torch

from tests.distributed.traps import Trap, trap_index, trap_rest, trap_value
from tests.distributed.whole_runs import TENSOR_PARALLEL, TRAINED, fit

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
ONE_PROCESS = [*TENSOR_PARALLEL, "--trainer.strategy.tensor_parallel_size=1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, policy_folder) -> Path:
    """A folder of shards."""
    folder = tmp_path_factory.mktemp("sharded")
    done = fit(folder, policy_folder, "fsdp2", 1, *TRAINED, "--trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "checkpoints/epoch=0.ckpt"


@pytest.mark.parametrize("strategy", [["--trainer.strategy=fsdp2"], ONE_PROCESS], ids=["fsdp2", "ModelParallel"])
@pytest.mark.parametrize(
    ("trap", "message"),
    [
        (trap_index, "index of shards in"),
        (trap_rest, "ckpt must hold nothing that would be executed, got {folder}/meta.pt"),
        (trap_value, "ckpt must hold nothing that would be executed, got optimizer_0.param_groups"),
    ],
)
def test_nothing_in_shards_is_executed_when_a_run_goes_on(tmp_path, policy_folder, checkpoint, strategy, trap, message):
    folder = tmp_path / "trapped.ckpt"
    shutil.copytree(checkpoint, folder)
    trap(folder, tmp_path / "caught")
    done = fit(tmp_path, policy_folder, "auto", 1, *TRAINED, *strategy, f"--ckpt_path={folder}")
    assert done.returncode != 0
    assert message.format(folder=folder) in done.stderr
    assert not (tmp_path / "caught").exists()


def test_nothing_that_comes_from_a_url_is_executed_when_a_run_goes_on(tmp_path, policy_folder, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "caught")}, tmp_path / "trapped.ckpt")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/trapped.ckpt"
        done = fit(tmp_path, policy_folder, "auto", 1, *TRAINED, f"--ckpt_path={url}")
        server.shutdown()
    assert done.returncode != 0
    assert f"ckpt_path must be a file or a folder on this machine, got '{url}'" in done.stderr
    assert not (tmp_path / "caught").exists()
