from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from appo.distributed.checkpoint import SHARD_INDEX, open_weights
from tests.distributed.traps import Trap, trap_index

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


def save_shards(folder: Path, model: str, weights: dict[str, torch.Tensor]) -> Path:
    """What Lightning's sharded strategies write: `ModelParallelStrategy` by `state_dict`, `FSDPStrategy` by `model`."""
    state = {f"policy.{name}": tensor for name, tensor in weights.items()}
    dcp.save({model: state, "optimizer_0": {"state": {"x": torch.zeros(2)}, "lr": 0.1}}, checkpoint_id=folder)
    return folder


@pytest.mark.parametrize("model", ["state_dict", "model"])
def test_shards_are_read_by_the_policys_own_names(tmp_path, model):
    weights = open_weights(save_shards(tmp_path / "ckpt", model, WEIGHTS))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in weights.tensors.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in WEIGHTS.items()
    }
    assert all(tensor.is_meta for tensor in weights.tensors.values())
    (only,) = weights.read(["b.weight"]).items()
    assert only[0] == "b.weight"
    for name, tensor in weights.read(WEIGHTS).items():
        assert torch.equal(tensor, WEIGHTS[name])


def test_a_file_is_read_by_the_policys_own_names(tmp_path):
    path = tmp_path / "last.ckpt"
    state = {f"policy.{name}": tensor for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": {**state, "metric": torch.zeros(1)}, "epoch": 3}, path)
    weights = open_weights(path)
    assert list(weights.tensors) == list(WEIGHTS)
    assert torch.equal(weights.read(["a.weight"])["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_some_weights_are_read_under_other_names(tmp_path, kind):
    if kind == "file":
        torch.save({"state_dict": {f"policy.{name}": tensor for name, tensor in WEIGHTS.items()}}, tmp_path / "ckpt")
    else:
        save_shards(tmp_path / "ckpt", "state_dict", WEIGHTS)
    weights = open_weights(tmp_path / "ckpt").renamed({"b.weight": "a.weight"})
    assert {name: tensor.shape for name, tensor in weights.tensors.items()} == {"b.weight": (2, 3)}
    (only,) = weights.read(weights.tensors).items()
    assert only[0] == "b.weight"
    assert torch.equal(only[1], WEIGHTS["a.weight"])


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"state_dict": {"policy.a": torch.zeros(1)}, "trap": Trap(tmp_path / "caught")}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="ckpt must be a checkpoint that Lightning wrote"):
        open_weights(tmp_path / "last.ckpt")
    assert not (tmp_path / "caught").exists()


def test_nothing_in_the_index_of_shards_is_executed(tmp_path):
    folder = save_shards(tmp_path / "ckpt", "state_dict", WEIGHTS)
    trap_index(folder, tmp_path / "caught")
    with pytest.raises(ValueError, match=r"index of shards in .*: pathlib\.Path\.touch has no place in it"):
        open_weights(folder)
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"\x80\x04."], ids=["empty", "text", "pickle"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt must be a checkpoint that Lightning wrote, got .*last\.ckpt"):
        open_weights(tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [b"", pickle.dumps({"a": 1})], ids=["empty", "dictionary"])
def test_other_indices_are_refused(tmp_path, content):
    (tmp_path / SHARD_INDEX).write_bytes(content)
    with pytest.raises(ValueError, match="ckpt must have an index of shards in"):
        open_weights(tmp_path)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="ckpt must be a checkpoint of a run, a file or a folder, got"):
        open_weights(tmp_path / "missing.ckpt")
    with pytest.raises(ValueError, match=r"ckpt must have a file \.metadata if it is a folder"):
        open_weights(tmp_path)
    torch.save({"state_dict": {"model.a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"ckpt must hold weights named policy\.\.\."):
        open_weights(tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match=r"ckpt must hold weights named policy\.\.\."):
        open_weights(tmp_path / "list.ckpt")
