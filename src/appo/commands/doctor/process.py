"""A step in a process of its own, which may hang, be killed or leave processes behind."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

from appo.commands.doctor.result import Figures, Machine, Result, SkipStepError, StepError
from appo.commands.doctor.steps import Step

_SHARED_IMPORTS = [
    "torch",
    "transformers",
    "lightning.pytorch",
    "appo.commands.lightning_cli",
    "appo.engines.hf.engine",
]
"""Loaded once for all steps: it takes longer than most of them."""

_ENDING_S = 10.0
"""That a process may take to end once its step is done: threads that were left behind must not hold it up."""

_LAST_LINES = 12


def run_step(step: Step, machine: Machine, limit_s: float) -> Result:
    """Runs one step; what it prints goes to ``<step>.log`` in the machine's folder.

    Args:
        step: to run.
        machine: it is run on.
        limit_s: seconds after which it is killed, with all processes that it has started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SHARED_IMPORTS)
    log = machine.folder / f"{step.name}.log"
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(step, machine, log, sender))
    started = monotonic()
    process.start()
    sender.close()
    result = None
    message = f"not done within {limit_s:g} s"
    try:
        if receiver.poll(limit_s):
            result = receiver.recv()
            process.join(_ENDING_S)
    except EOFError:
        process.join(_ENDING_S)
        message = f"its process ended with exit code {process.exitcode}"
    finally:
        assert process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    result = result or Result(step.name, "FAIL", message=message, advice=f"see {log}: {_end_of(log)}")
    return replace(result, seconds=round(monotonic() - started, 2))


def _work(step: Step, machine: Machine, log: Path, sender: Connection) -> None:
    os.setsid()  # what it starts can be ended with it
    figures: Figures = {}
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        result = Result(step.name, "PASS", figures=figures)
        try:
            module, function = step.function.split(":")
            getattr(importlib.import_module(f"appo.commands.doctor.{module}"), function)(machine, figures)
        except SkipStepError as error:
            result = replace(result, status="SKIP", message=str(error))
        except StepError as error:
            result = replace(result, status="FAIL", message=str(error), advice=error.advice)
        except BaseException as error:  # noqa: BLE001 - it is handed on, and the doctor goes on with the next step
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            result = replace(result, status="FAIL", message=text, advice=_advice(error, log))
        sys.stdout.flush()
        sys.stderr.flush()
        sender.send(result)
        sender.close()


def _advice(error: BaseException, log: Path) -> str:
    text = str(error)
    if isinstance(error, ImportError):
        return f"install what is missing: pip install {error.name}" if error.name else "see the step `versions`"
    if "out of memory" in text:
        return "free the device of other processes, or choose another one by --device"
    return f"see {log}"


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " | ".join(lines[-_LAST_LINES:])
