"""Checkpoints with something in them that would be executed."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import torch

from appo.distributed.checkpoint import SHARD_INDEX


class Trap:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def trap_index(folder: Path, caught: Path) -> None:
    """Puts a trap into the index of shards."""
    metadata = pickle.loads((folder / SHARD_INDEX).read_bytes())
    metadata.planner_data = Trap(caught)
    (folder / SHARD_INDEX).write_bytes(pickle.dumps(metadata))


def trap_rest(folder: Path, caught: Path) -> None:
    """Puts a trap beside the shards, where the state of loops and callbacks is."""
    rest = torch.load(folder / "meta.pt")
    torch.save({**rest, "trap": Trap(caught)}, folder / "meta.pt")


def trap_value(folder: Path, caught: Path) -> None:
    """Puts a trap in the place of the learning rate, which the index then points to."""
    metadata = pickle.loads((folder / SHARD_INDEX).read_bytes())
    (entry,) = (entry for entry in metadata.storage_data if entry.fqn.endswith(".lr"))
    content = io.BytesIO()
    torch.save(Trap(caught), content)
    where = metadata.storage_data[entry]
    shard = folder / where.relative_path
    metadata.storage_data[entry] = replace(where, offset=shard.stat().st_size, length=content.tell())
    shard.write_bytes(shard.read_bytes() + content.getvalue())
    (folder / SHARD_INDEX).write_bytes(pickle.dumps(metadata))
