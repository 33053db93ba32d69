"""A user's mistake ends a command in one line, a defect with its traceback."""

from __future__ import annotations

import dis
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

_APPO = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "scripts"))
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_RAISE = dis.opmap["RAISE_VARARGS"]
_RUNNING = "_run_stage"
"""Function of Lightning's trainer below which a run has begun; what is checked before is what a user has typed."""

_NOT_FOR_TEXT = ("torchvision", "torchaudio", "torchcodec")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the process with status 2 and one line where a user is mistaken; lets through what else is raised."""
    try:
        yield
    except Exception as error:
        if (unfit := _unfit_package(error)) is not None:
            refuse(unfit, error)
        if not is_mistake(error):
            raise
        refuse("; ".join([str(error), *getattr(error, "__notes__", ())]), error)


def refuse(message: str, error: BaseException | None = None) -> NoReturn:
    """Ends the process with status 2 and one line, behind the traceback of `error` if that was asked for."""
    if error is not None and is_debugging():
        traceback.print_exception(error)
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    where = "" if rank == "0" else f" on rank {rank}"
    sys.stderr.write(f"error{where}: {' '.join(message.split())}\n")
    raise SystemExit(2)


def is_debugging() -> bool:
    """Whether tracebacks are wanted: ``--debug`` or ``APPO_DEBUG=1``."""
    return os.environ.get("APPO_DEBUG", "0") not in ("", "0")


def is_mistake(error: BaseException) -> bool:
    """Whether an error says what a user has to change.

    It does if a check of this package has raised it, by a statement, before the run has begun, and no code of the
    user's had a part in it, whose traceback the user needs to see. Likewise what Lightning calls a misconfiguration.
    """
    if any(cls.__name__ == "MisconfigurationException" for cls in type(error).__mro__):
        return True
    frames = list(_frames(error.__traceback__))
    if not isinstance(error, (ValueError, OSError, ImportError)) or not frames:
        return False
    code = frames[-1].tb_frame.f_code
    return (
        code.co_filename.startswith(_APPO)
        and code.co_code[frames[-1].tb_lasti] == _RAISE
        and not any(frame.tb_frame.f_code.co_name == _RUNNING for frame in frames)
        and not any(_is_users(name) for each in _chain(error) for name in _files(each))
    )


def _unfit_package(error: BaseException) -> str | None:
    """What to do if the import of a package has failed that transformers imports wherever it finds it."""
    for each in _chain(error):
        for frame in _frames(each.__traceback__):
            code = frame.tb_frame.f_code
            for package in _NOT_FOR_TEXT:
                if code.co_name == "<module>" and f"{os.sep}{package}{os.sep}" in code.co_filename:
                    return (
                        f"{package} does not fit the torch that is installed ({each}), and text needs none of its "
                        f"kind: pip uninstall -y {' '.join(_NOT_FOR_TEXT)}"
                    )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _frames(outermost: TracebackType | None) -> Iterator[TracebackType]:
    while outermost is not None:
        yield outermost
        outermost = outermost.tb_next


def _files(error: BaseException) -> Iterator[str]:
    return (frame.tb_frame.f_code.co_filename for frame in _frames(error.__traceback__))


def _is_users(file_name: str) -> bool:
    # Frozen modules and what dataclasses generate have names in angle brackets.
    is_installed = any(folder in file_name for folder in _INSTALLED)
    return not is_installed and not file_name.startswith(("<", _APPO, *_LIBRARIES))
