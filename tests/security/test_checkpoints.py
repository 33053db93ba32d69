"""A checkpoint of a stranger runs nothing, whichever way it is loaded."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from torch.distributed import checkpoint as dcp

from appo.commands.cli import run
from appo.distributed.checkpoint import SHARD_INDEX, open_weights, trust_no_checkpoint
from tests.distributed.traps import Trap, trap_index
from tests.small_run import CONFIG


@pytest.fixture
def strategy() -> SingleDeviceStrategy:
    strategy = SingleDeviceStrategy("cpu")
    trust_no_checkpoint(strategy)
    return strategy


@pytest.fixture
def shards(tmp_path) -> Path:
    dcp.save({"state_dict": {"policy.a": torch.ones(2)}}, checkpoint_id=tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("weights_only", [True, False, None])
def test_a_file_is_not_executed_whatever_the_caller_says(tmp_path, strategy, weights_only):
    torch.save({"trap": Trap(tmp_path / "caught")}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="ckpt_path must hold nothing that would be executed"):
        strategy.load_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
    assert not (tmp_path / "caught").exists()


def test_a_harmless_file_loads(tmp_path, strategy):
    torch.save({"epoch": 3}, tmp_path / "last.ckpt")
    assert strategy.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 3}


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x.ckpt", "memory://x.ckpt", "s3://folder/x.ckpt"])
def test_nothing_is_fetched_from_elsewhere(strategy, place):
    with pytest.raises(ValueError, match=rf"ckpt_path must be a file or a folder on this machine, got '{place}'"):
        strategy.load_checkpoint(place)


def test_a_folder_is_no_file(tmp_path, strategy, shards):
    trap_index(shards, tmp_path / "caught")
    with pytest.raises(ValueError, match=r"ckpt_path must be a file with a trainer\.strategy that does not shard"):
        strategy.load_checkpoint(shards)
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_a_strategy_that_trusts_its_checkpoints_loads_none(tmp_path, shards, kind):
    torch.save({"trap": Trap(tmp_path / "caught")}, tmp_path / "file")
    trap_index(shards, tmp_path / "caught")
    strategy = FSDPStrategy()
    trust_no_checkpoint(strategy)
    with pytest.raises(ValueError, match="to load a checkpoint without executing what it holds, got FSDPStrategy"):
        strategy.load_checkpoint(tmp_path / kind)
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize(
    "change", [{"relative_path": "../elsewhere"}, {"relative_path": "/dev/zero"}, {"transform_descriptors": ["zstd"]}]
)
def test_an_index_names_shards_beside_it_alone(shards, change):
    metadata = pickle.loads((shards / SHARD_INDEX).read_bytes())
    metadata.storage_data = {key: replace(where, **change) for key, where in metadata.storage_data.items()}
    (shards / SHARD_INDEX).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="its shards must be plain and lie beside it"):
        open_weights(shards)


@pytest.mark.parametrize("value", ["false", "null"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_no_option_trusts_a_checkpoint(tmp_path, capsys, command, value):
    with pytest.raises(SystemExit):
        run([command, "--config", CONFIG, f"--trainer.default_root_dir={tmp_path}", f"--weights_only={value}"])
    assert "weights_only must be true: no checkpoint is trusted" in capsys.readouterr().err


def read_all(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights = open_weights(checkpoint)
    return weights.read(weights.tensors)


DAMAGED = [b"", b"PK\x03\x04", b"\x80\x04\x95" + bytes(8), b"\x8d" + b"\x7f" * 8, b"K\x01.", b"\x96" * 9, b"h\x00."]


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", [SHARD_INDEX, "__0_0.distcp"])
def test_shards_that_are_damaged_are_refused_in_a_line(shards, name, content):
    (shards / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^ckpt must have (an index of shards|readable shards) in [^\n]{,400}$"):
        read_all(shards)


@pytest.mark.parametrize("content", [*DAMAGED, pickle.dumps({"state_dict": [1]}), pickle.dumps({"state_dict": {1: 2}})])
def test_a_file_that_is_damaged_is_refused_in_a_line_that_does_not_say_how_to_execute_it(tmp_path, strategy, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"^ckpt must [^\n]{,400}$") as error:
        open_weights(tmp_path / "last.ckpt")
    assert "weights_only" not in str(error.value)
    with pytest.raises(ValueError, match=r"^ckpt_path must hold nothing that would be executed, got [^\n]{,400}$"):
        strategy.load_checkpoint(tmp_path / "last.ckpt")


def test_an_index_without_its_tables_is_refused(shards):
    (shards / SHARD_INDEX).write_bytes(b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}b.")
    with pytest.raises(ValueError, match=r"ckpt must have an index of shards in .*state_dict_metadata"):
        open_weights(shards)
