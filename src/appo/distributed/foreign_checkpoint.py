"""Files of a checkpoint that a stranger may have written: nothing in them is executed, damaged ones are refused."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

SHARD_INDEX = ".metadata"
"""The file of a sharded checkpoint that says which shard holds what."""

UNEXECUTED = "nothing that would be executed"
"""What a checkpoint must hold, in words of errors."""

_LONGEST_REASON = 300

_INDEX_CLASSES = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    ),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
    "collections": ("OrderedDict",),
}
"""All that the index of shards consists of, beside data types."""


class DamagedError(ValueError):
    """A file of a checkpoint is damaged, or holds what would have to be executed."""


@contextmanager
def refused(rule: str) -> Iterator[None]:
    """Turns whatever damaged or hostile data raises into one error; what says that a file is missing stays.

    Args:
        rule: what the error begins with.

    Raises:
        DamagedError: in place of other errors.
    """
    try:
        yield
    except (OSError, DamagedError):
        raise
    except Exception as error:
        # Readers of pickles and archives raise errors of all kinds where bytes make no sense.
        raise DamagedError(f"{rule}: {_reason(error)}") from error


def load_data(file: Path | io.BytesIO, rule: str, *, mmap: bool = False) -> Any:
    """Tensors and plain values of a file that `torch.save` wrote, on the CPU.

    Args:
        file: to read.
        rule: what the error begins with.
        mmap: whether tensors stay in the file until they are touched.

    Raises:
        DamagedError: if it holds anything else.
    """
    with refused(rule):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def load_shards(state: dict[str, Any], reader: ShardReader, *, no_dist: bool = False) -> None:
    """Fills a state from shards.

    Args:
        state: its tensors are overwritten, other values replaced.
        reader: of the shards.
        no_dist: whether this process reads alone.

    Raises:
        DamagedError: if the shards do not hold what the state has, or what would have to be executed.
    """
    try:
        load(state, storage_reader=reader, planner=_LoadPlanner(), no_dist=no_dist)
    except CheckpointException as error:
        # Torch collects what each process has raised; the first of them says it in one line.
        with refused(f"ckpt must have readable shards in {reader.path}"):
            raise error.failures[min(error.failures)][0] from error


def _reason(error: Exception) -> str:
    """What is wrong, in a line. Torch adds how to read a file all the same, which executes it."""
    text = re.sub(r"(?s).*WeightsUnpickler error: *", "", str(error)) or type(error).__name__
    return " ".join(re.split(r"(?i)\n\s*\n|\. (?=this is an|this file can|please)", text)[0].split())[:_LONGEST_REASON]


class _LoadPlanner(DefaultLoadPlanner):
    """Takes what is no tensor, such as a learning rate, without executing it, where torch's own planner trusts it."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        harmless = io.BytesIO()
        torch.save(load_data(value, f"ckpt must hold {UNEXECUTED}, got {read_item.storage_index.fqn}"), harmless)
        harmless.seek(0)
        super().load_bytes(read_item, harmless)


class ShardReader(FileSystemReader):
    """Reads shards without executing what a stranger may have put into their index.

    The index is a pickle, and torch's own reader trusts it. Tensors are read with ``weights_only=True`` by both.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / SHARD_INDEX
        rule = f"ckpt must have an index of shards in {path}"
        with refused(rule):
            # From memory: of a file, as much would be set aside as it claims to hold.
            metadata = IndexUnpickler(io.BytesIO(path.read_bytes())).load()
            if not isinstance(metadata, Metadata):
                raise ValueError(f"it holds a {type(metadata).__name__}")
            # A pickle may leave out attributes, and give them any type.
            if not all(isinstance(getattr(metadata, name), dict) for name in ("state_dict_metadata", "storage_data")):
                raise ValueError("it holds no tables of names and places")
            for where in _places(metadata):
                if Path(where.relative_path).name != where.relative_path or where.transform_descriptors:
                    raise ValueError(f"its shards must be plain and lie beside it, got {where}")
        return metadata


def _places(metadata: Metadata) -> list[_StorageInfo]:
    return [where for where in metadata.storage_data.values() if isinstance(where, _StorageInfo)]


class IndexUnpickler(pickle.Unpickler):
    """Builds nothing but what the index of shards consists of.

    See "pickle: Restricting Globals" (https://docs.python.org/3/library/pickle.html#restricting-globals).
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name not in _INDEX_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)
