"""Weights on their way through a folder: for engines in other processes, which read it for themselves."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from appo.policy.weight_layout import WeightLayout

WITHOUT_HEAD = frozenset({"Gemma2ForCausalLM", "Gemma3nForCausalLM"})
"""Models of vLLM 0.32 that read their embeddings where others have a head that is tied to them."""

_SHARD_BYTES = 32 * 2**20
"""Tensors are gathered up to this before they are written; serializing takes a copy of them."""


def vllm_weights(layout: WeightLayout, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Checked tensors under the names that vLLM loads, for a model that is loaded already.

    A tied tensor goes under each of its names: without its own, the LM head would keep its old values. Models that have
    no such head refuse its name.

    Args:
        layout: of the policy.
        weights: parameter name and tensor, read once, to the end.

    Raises:
        ValueError: as `WeightLayout.checked`.
    """
    refused = "lm_head.weight" if type(layout.model).__name__ in WITHOUT_HEAD else None
    return ((name, tensor) for name, tensor in layout.saved(weights) if name != refused)


class WeightFolder:
    """Writes each version of the weights into a folder of its own, which appears only once it is whole.

    Args:
        root: folder that the readers see under the same path; none makes a temporary one, in shared memory where the
            system has it, and removes it in the end. One that is not there is made for its owner alone.

    Raises:
        PermissionError: if others own the folder or may write in it: they could put their weights in the place of ours.
    """

    def __init__(self, root: str | None = None) -> None:
        shared_memory = Path("/dev/shm")
        self._is_temporary = root is None
        self.root = Path(
            root or tempfile.mkdtemp("-appo-weights", dir=shared_memory if shared_memory.is_dir() else None)
        )
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.root.mkdir(mode=0o700)
        _check_owner(self.root)

    def write(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Path:
        """Writes all tensors as safetensors, shard by shard.

        Args:
            weights: name and tensor, read once, one at a time; a tensor may come under several names.
            version: names the folder.

        Returns:
            The folder.
        """
        partial, folder = self.root / f".version_{version}", self.root / f"version_{version}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        shard: dict[str, Tensor] = {}
        number = 0
        for name, tensor in weights:
            # A file cannot hold one tensor under two names.
            is_tied = any(tensor.data_ptr() == other.data_ptr() for other in shard.values())
            if shard and (is_tied or _num_bytes(shard.values()) + _num_bytes([tensor]) > _SHARD_BYTES):
                _save(shard, partial, number)
                shard, number = {}, number + 1
            shard[name] = tensor
        _save(shard, partial, number)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        return folder

    def keep_only(self, folder: Path | None) -> None:
        """Removes every other version; None: all."""
        for other in self.root.glob("version_*"):
            if other != folder:
                shutil.rmtree(other)

    def close(self) -> None:
        """Removes a temporary folder; does nothing to one that was given."""
        if self._is_temporary:
            shutil.rmtree(self.root, ignore_errors=True)


def _check_owner(folder: Path) -> None:
    # A link counts as what it leads to, and as itself: who owns it may lead it elsewhere.
    for status in (folder.stat(), folder.lstat()):
        if status.st_uid != os.geteuid():
            raise PermissionError(f"weights_folder must be our own, got {folder} of the user {status.st_uid}")
    if (mode := stat.S_IMODE(folder.stat().st_mode)) & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"weights_folder must be writable for its owner alone, got {folder} with mode {mode:04o}")


def _save(shard: dict[str, Tensor], folder: Path, number: int) -> None:
    save_file({name: tensor.contiguous() for name, tensor in shard.items()}, folder / f"model-{number:05d}.safetensors")


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
