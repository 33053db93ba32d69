"""A user's mistake ends a command in one line, a defect with its traceback."""

from __future__ import annotations

import dis
import os
import re
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

_PLAINER = (
    (r"(?s)Does not validate against any of the Union.*?Errors:\s*(.*)Given value: (?!Namespace)", r"\1Got value: "),
    (r"(?s)Does not validate against any of the Union.*?Errors:\s*(.*)Given value: .*", r"\1"),
    (r"\s*Given value type: .*", "."),
    (r"\s*- Expected a (<class ')?NoneType('>)?", ""),
    # What a component may look like in a file: not what is wrong with this one.
    (r"\s*- Expected a path but .* either not accessible or invalid", ""),
    (r"(?s)\n\s*Subclass types expect one of:.*", ""),
    (r'Parser key "([\w.]+)":', r"\1:"),
    (r"^([\w.]+:)?\s*- ", r"\1 "),
    (r"<class '(\w+)'>", r"\1"),
    (r"\btyping\.", ""),
)
"""Parts of jsonargparse's messages, and what they say to a user."""

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
    for pattern, text in _PLAINER:
        message = re.sub(pattern, text, message)
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    where = "" if rank == "0" else f" on rank {rank}"
    sys.stderr.write(f"error{where}: {' '.join(message.split())}\n")
    raise SystemExit(2)


def is_debugging() -> bool:
    """Whether tracebacks are wanted: ``--debug`` or ``APPO_DEBUG=1``."""
    return os.environ.get("APPO_DEBUG", "0") not in ("", "0")


def is_mistake(error: BaseException) -> bool:
    """Whether an error says what a user has to change.

    It does if a check of this package has raised it by a statement, or if it is about a file or a connection. Neither
    holds once the run has begun, nor where code of the user's had a part, whose traceback the user needs to see. What
    Lightning calls a misconfiguration is one.
    """
    if any(cls.__name__ == "MisconfigurationException" for cls in type(error).__mro__):
        return True
    frames = list(_frames(error.__traceback__))
    has_begun = any(frame.tb_frame.f_code.co_name == _RUNNING for frame in frames)
    if not frames or has_begun or any(_is_users(name) for each in _chain(error) for name in _files(each)):
        return False
    code = frames[-1].tb_frame.f_code
    # Where several types may stand, jsonargparse raises what the checks of each have said.
    is_ours = code.co_filename.startswith(_APPO) or f"{os.sep}jsonargparse{os.sep}" in code.co_filename
    is_check = is_ours and code.co_code[frames[-1].tb_lasti] == _RAISE
    return isinstance(error, OSError) or (is_check and isinstance(error, (ValueError, ImportError)))


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
