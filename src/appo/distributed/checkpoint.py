"""Checkpoints of a run, a single file or a folder of shards, read without executing anything in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from appo.distributed.foreign_checkpoint import SHARD_INDEX, UNEXECUTED, ShardReader, load_data, load_shards, refused

if TYPE_CHECKING:
    # `appo export` does without a trainer.
    from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

_REST = "meta.pt"
"""The file of a sharded checkpoint that has what is neither weights nor optimizer state."""

_POLICY = "policy."
"""What the module puts before the names of its policy's parameters."""

_VERSION = "appo_version"

_SHARDED_MODEL = ("state_dict.", "model.")
"""What `ModelParallelStrategy` and `FSDPStrategy` put before the names of all weights in a sharded checkpoint."""


@dataclass(frozen=True, eq=False)
class PolicyWeights:
    """The weights of a policy, not read yet.

    Attributes:
        tensors: by parameter name, to look at shape and data type; those of shards are on the meta device.
        read: the tensors of some names, on the CPU; those of a single file stay in it until they are touched.
    """

    tensors: Mapping[str, Tensor]
    read: Callable[[Iterable[str]], dict[str, Tensor]]

    def renamed(self, names: Mapping[str, str]) -> PolicyWeights:
        """Picks some of the weights, under names of their own.

        Args:
            names: what each is named here, by its new name.
        """

        def read(wanted: Iterable[str]) -> dict[str, Tensor]:
            new = {names[name]: name for name in wanted}
            return {new[name]: tensor for name, tensor in self.read(new).items()}

        return PolicyWeights({new: self.tensors[name] for new, name in names.items()}, read)


def open_weights(checkpoint: Path) -> PolicyWeights:
    """Opens the policy's weights in a checkpoint of any strategy.

    Args:
        checkpoint: a file that Lightning wrote, or a folder that one of its strategies wrote by
            `torch.distributed.checkpoint`.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is no such checkpoint, holds no policy, or holds what would have to be executed.
    """
    if checkpoint.is_dir():
        weights = _open_folder(checkpoint)
    elif checkpoint.is_file():
        weights = _open_file(checkpoint)
    else:
        raise FileNotFoundError(f"ckpt must be a checkpoint of a run, a file or a folder, got {str(checkpoint)!r}")
    if not weights.tensors:
        raise ValueError(f"ckpt must hold weights named {_POLICY}..., as runs of appo save them, got {checkpoint}")
    return weights


def check_whole(checkpoint: Path) -> None:
    """Looks whether a checkpoint can be read, without reading its tensors.

    Raises:
        ValueError: if it was cut off, damaged, is none, or a later version has written it.
    """
    if not checkpoint.is_dir():
        content = _load_file(checkpoint)
    else:
        _check_folder(checkpoint)
        content = load_data(checkpoint / _REST, f"ckpt must hold {UNEXECUTED}, got {checkpoint / _REST}")
    if isinstance(content, dict):
        check_versions(content)


def mark_version(checkpoint: dict[str, Any]) -> None:
    """Says in a checkpoint which version of this package has written it."""
    checkpoint[_VERSION] = version("appo")


def check_versions(checkpoint: Mapping[str, Any]) -> None:
    """Looks whether a checkpoint may hold what this version does not know.

    Raises:
        ValueError: if a later version of this package or of Lightning has written it.
    """
    for package, key in (("appo", _VERSION), ("lightning", "pytorch-lightning_version")):
        written, own = str(checkpoint.get(key, "0")), version(package)
        try:
            is_later = Version(written).release > Version(own).release
        except InvalidVersion as error:
            raise ValueError(f"ckpt_path must be a checkpoint of a version of {package}, got {written!r}") from error
        if is_later:
            raise ValueError(
                f"ckpt_path must be a checkpoint of {package} {own}, which is installed, or an earlier version, got "
                f"one of {package} {written}"
            )


def _check_folder(checkpoint: Path) -> None:
    if not (checkpoint / SHARD_INDEX).is_file():
        raise ValueError(f"ckpt must have a file {SHARD_INDEX} if it is a folder, got {checkpoint}")


def _load_file(checkpoint: Path) -> Any:
    return load_data(checkpoint, f"ckpt must be a checkpoint that Lightning wrote, got {checkpoint}", mmap=True)


def _open_file(checkpoint: Path) -> PolicyWeights:
    content = _load_file(checkpoint)
    state = content.get("state_dict") if isinstance(content, dict) else None
    tensors = {
        name.removeprefix(_POLICY): tensor
        for name, tensor in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and name.startswith(_POLICY) and isinstance(tensor, Tensor)
    }
    return PolicyWeights(tensors, lambda names: {name: tensors[name] for name in names})


def _open_folder(checkpoint: Path) -> PolicyWeights:
    _check_folder(checkpoint)
    rule = f"ckpt must have readable shards in {checkpoint}"
    reader = ShardReader(checkpoint)
    index = reader.read_metadata().state_dict_metadata
    with refused(rule):
        stored = {key: entry for key, entry in index.items() if isinstance(entry, TensorStorageMetadata)}
        keys = {
            key.removeprefix(model + _POLICY): key
            for model in _SHARDED_MODEL
            for key in stored
            if key.startswith(model + _POLICY)
        }
        shapes = {
            name: torch.empty(stored[key].size, dtype=stored[key].properties.dtype, device="meta")
            for name, key in keys.items()
        }

    def read(names: Iterable[str]) -> dict[str, Tensor]:
        with refused(rule):
            tensors = {keys[name]: torch.empty_like(shapes[name], device="cpu") for name in names}
            load_shards(tensors, reader, no_dist=True)
        return {key.partition(_POLICY)[2]: tensor for key, tensor in tensors.items()}

    return PolicyWeights(shapes, read)


def trust_no_checkpoint(strategy: Strategy) -> None:
    """Has a strategy load checkpoints by `resume`, where Lightning's own ways may run what stands in one.

    Args:
        strategy: before it loads anything.
    """
    strategy.load_checkpoint = partial(resume, strategy)  # type: ignore[method-assign]


def resume(strategy: Strategy, checkpoint: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
    """Loads a checkpoint as Lightning's strategy does; all processes call it.

    Args:
        strategy: that has been set up.
        checkpoint: a folder of shards, or a single file; that of the first process counts.
        weights_only: for the signature's sake; nothing is executed, whatever it says.

    Returns:
        What the checkpoint holds; of one that is loaded into a sharded policy and its optimizers, what else it holds.

    Raises:
        ValueError: if it is not on this machine, holds what would have to be executed, or the strategy is one whose own
            way of loading executes it.
    """
    from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

    path = Path(strategy.broadcast(checkpoint)).absolute()
    if not path.exists():
        raise ValueError(f"ckpt_path must be a file or a folder on this machine, got {str(checkpoint)!r}")
    if isinstance(strategy, ModelParallelStrategy):
        if (path / SHARD_INDEX).is_file():
            return _resume_shards(strategy, path)
    elif type(strategy).load_checkpoint is not Strategy.load_checkpoint:
        raise ValueError(
            "trainer.strategy must be ddp, ModelParallelStrategy or that of one device to load a checkpoint without "
            f"executing what it holds, got {type(strategy).__name__}"
        )
    elif path.is_dir():
        raise ValueError(f"ckpt_path must be a file with a trainer.strategy that does not shard, got the folder {path}")
    with refused(f"ckpt_path must hold {UNEXECUTED}, got {path}"):
        loaded: dict[str, Any] = type(strategy).load_checkpoint(strategy, path, weights_only=True)
    return loaded


def _resume_shards(strategy: ModelParallelStrategy, folder: Path) -> dict[str, Any]:
    model, module = strategy.model, strategy.lightning_module
    assert model is not None
    assert module is not None
    reader = ShardReader(folder)
    # Whatever can be refused is, before the policy has changed.
    reader.read_metadata()
    rest: dict[str, Any] = load_data(folder / _REST, f"ckpt must hold {UNEXECUTED}, got {folder / _REST}")
    state: dict[str, Any] = {"state_dict": get_model_state_dict(model)}
    load_shards(state, reader)
    model.load_state_dict(state["state_dict"], strict=module.strict_loading)
    for number, optimizer in enumerate(strategy.optimizers):
        # One by one: a run may have fewer than its checkpoint.
        state = {f"optimizer_{number}": get_optimizer_state_dict(model, optimizer)}
        load_shards(state, reader)
        set_optimizer_state_dict(
            model, optimizer, optim_state_dict=state.popitem()[1], options=StateDictOptions(cpu_offload=True)
        )
    return rest
