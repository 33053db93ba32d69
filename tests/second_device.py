"""A second device: it computes as the CPU does, and refuses tensors of the CPU as a GPU does.

Its tensors wrap those of the CPU that have their values. A number of the CPU, a tensor without dimensions, may be mixed
in, and copies from one device to the other are made on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.copied_processes import CONTEXT

NAME = "second"

_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_}


class DeviceMixError(RuntimeError):
    """An operation got tensors of both devices."""


class SecondTensor(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, values: Tensor) -> SecondTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, values: Tensor) -> None:
        self.values_of_cpu = values

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.values_of_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _SecondDevice(TorchDispatchMode):
    """Sees also operations that get no tensor: those that make one on a device of their choice."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


def on_second_device(work: Callable[..., None], *args: object) -> None:
    """Runs a function in a process that has the device, with it as first argument."""
    torch.multiprocessing.start_processes(_run, (work, *args), start_method=CONTEXT.get_start_method())


def _run(rank: int, work: Callable[..., None], *args: object) -> None:
    work(_start(), *args)


def _start() -> torch.device:
    _setup_privateuseone_for_python_backend(NAME, _Module())
    # A tensor made of a list comes to the device by an operation that can be seen.
    torch._C._set_only_lift_cpu_tensors(True)
    _SecondDevice().__enter__()
    return torch.device(NAME)


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = tree_flatten((args, kwargs))[0]
    tensors = [each for each in given if isinstance(each, Tensor)]
    is_here = any(isinstance(each, SecondTensor) for each in tensors)
    strangers = [each for each in tensors if not isinstance(each, SecondTensor) and each.ndim > 0]
    if is_here and strangers and func.overloadpacket not in _COPIES:
        raise DeviceMixError(
            f"{func} got tensors of both devices, {[list(each.shape) for each in strangers]} of the CPU"
        )
    result = func(*tree_map(_plain, args), **tree_map(_plain, dict(kwargs)))
    written = _written(func, args, kwargs)
    if written:
        return None if result is None else written[0] if isinstance(result, Tensor) else tuple(written)
    target = next((each.type for each in given if isinstance(each, torch.device)), NAME if is_here else "cpu")
    return tree_map(_wrapped, result) if target == NAME else result


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes to, which are also what it returns."""
    arguments = func._schema.arguments
    named = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    return [value for argument, value in named if argument.alias_info is not None and argument.alias_info.is_write]


def _plain(value: Any) -> Any:
    if isinstance(value, SecondTensor):
        return value.values_of_cpu
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _wrapped(value: Any) -> Any:
    return SecondTensor(value) if isinstance(value, Tensor) else value
