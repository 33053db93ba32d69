"""Processes that are copies of one that has read the libraries: reading them takes longer than what most tests do."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed.tensor", "appo.commands.lightning_cli"])


class Finished(NamedTuple):
    """How processes ended: as the first of them did, or another one that failed, with what all of them wrote."""

    returncode: int
    output: str


def run(main: Callable[[], int | None], args: Sequence[str], *environments: Mapping[str, str]) -> Finished:
    """Runs a main program in processes, one for each environment.

    Args:
        main: returns the status, if it has one.
        args: of the program.
        environments: what the environment of each process has besides that of this one.
    """
    with tempfile.NamedTemporaryFile("r") as output:
        processes = [
            CONTEXT.Process(target=run_here, args=(main, args, output.name, os.getcwd(), {**os.environ, **environment}))
            for environment in environments
        ]
        for process in processes:
            process.start()
        processes[0].join(300)
        for process in processes:
            # What starts processes ends all of them when one has failed.
            process.join(0 if processes[0].exitcode else 60)
            process.kill()
            process.join()
        return Finished(next((process.exitcode for process in processes if process.exitcode), 0), output.read())


def run_here(
    main: Callable[[], int | None], args: Sequence[str], output: str, folder: str, environment: Mapping[str, str]
) -> None:
    """The main program, with what a copy of a process leaves out at its end."""
    os.environ.update(environment)
    os.chdir(folder)
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.argv = [sys.modules[main.__module__].__file__ or "", *args]
    try:
        sys.exit(main())
    except Exception:
        # It says whose error it is, which multiprocessing does not.
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        atexit._run_exitfuncs()
