"""Fuzzes one target for some minutes, in a process that may hang, crash or run out of memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import target as guided_by
from hypothesis.errors import Flaky

from tests.fuzz.target import Check, Input, Target

_EXAMPLES = 200
"""Inputs between two looks at the clock."""
_HANG_S = 60.0
_ROOM_MB = 2048
"""Address space beyond what the process has when it begins."""
_LAST, _FINDINGS, _COUNTS = "last.json", "findings.jsonl", "counts.json"


class FoundError(Exception):
    """An input has found something."""


@dataclass
class Campaign:
    """One process's share: what it tries until the time is over.

    Attributes:
        target: what is fuzzed.
        folder: for findings, and for the input that is being tried.
        seconds: to go on for.
        num_tried: inputs so far.
        known: places where something was found; they are passed over afterwards.
    """

    target: Target
    folder: Path
    seconds: float
    num_tried: int = 0
    known: set[str] = field(default_factory=set)
    until: float = field(init=False)

    def run(self, first_seed: int) -> None:
        """Tries inputs until the time is over."""
        findings = self.folder / _FINDINGS
        if findings.exists():
            self.known = {json.loads(line)["place"] for line in findings.read_text().splitlines()}
        with self.target.opened() as check:
            _limit_memory()
            number, began = first_seed, time.monotonic()
            self.until = began + self.seconds
            while (seconds := time.monotonic() - began) < self.seconds:
                self._round(check, number)
                number += 1
                counts = {"tried": self.num_tried, "next_seed": number, "seconds": seconds}
                (self.folder / _COUNTS).write_text(json.dumps(counts))

    def _round(self, check: Check, number: int) -> None:
        last = os.open(self.folder / _LAST, os.O_CREAT | os.O_WRONLY)
        failed: list[tuple[Input, str, str]] = []

        @seed(number)
        @settings(
            max_examples=_EXAMPLES,
            database=None,
            report_multiple_bugs=False,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.target, Phase.shrink),
        )
        @given(self.target.inputs)
        def try_one(value: Input) -> None:
            if time.monotonic() > self.until and not failed:
                return
            os.ftruncate(last, 0)
            os.pwrite(last, json.dumps(value).encode(), 0)
            # Not handled: it ends the process, whatever that is doing.
            signal.setitimer(signal.ITIMER_REAL, _HANG_S)
            self.num_tried += 1
            try:
                seconds = self.target.run(check, value)
            except BaseException as error:
                place = place_of(error)
                if place in self.known:
                    return
                failed.append((value, place, f"{type(error).__name__}: {error}"[:300]))
                raise FoundError from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            guided_by(seconds / (sum(map(len, value)) + 500.0), label="seconds a character")

        try:
            try_one()
        except Flaky:
            self._record(*failed[-1], is_flaky=True)
        except FoundError:
            # The last one is what it was made smaller to.
            self._record(*failed[-1])
        finally:
            os.close(last)

    def _record(self, value: Input, place: str, message: str, *, is_flaky: bool = False) -> None:
        self.known.add(place)
        note(self.folder, value, place, message + (" (not every time)" if is_flaky else ""))


def place_of(error: BaseException) -> str:
    """Where an error comes from; two of one place are one finding."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "hypothesis" not in frame.filename]
    own = [frame for frame in frames if "/appo/" in frame.filename] or frames
    return (
        f"{type(error).__name__} {Path(own[-1].filename).name}:{own[-1].lineno} {frames[-1].name}:{frames[-1].lineno}"
    )


def note(folder: Path, value: Input, place: str, message: str) -> None:
    """Appends a finding."""
    with (folder / _FINDINGS).open("a") as file:
        file.write(json.dumps({"place": place, "message": message, "input": list(value)}) + "\n")


def run_campaign(target: Target, minutes: float, folder: Path, first_seed: int) -> tuple[int, list[dict]]:
    """Fuzzes a target, in processes that are started anew when one dies.

    Returns:
        How many inputs were tried, and what was found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_LAST, _FINDINGS, _COUNTS):
        (folder / name).unlink(missing_ok=True)
    left, tried, number = 60.0 * minutes, 0, first_seed
    while left > 0.0:
        command = [sys.executable, "-m", "tests.fuzz", target.name, "--seconds", str(left), "--seed", str(number)]
        began = time.monotonic()
        with (folder / "log").open("a") as log:
            status = subprocess.run([*command, "--out", str(folder)], stdout=log, stderr=log, check=False).returncode
        counts = json.loads((folder / _COUNTS).read_text()) if (folder / _COUNTS).exists() else {}
        tried, number = tried + counts.get("tried", 0), counts.get("next_seed", number) + 1
        if status != 0:
            end = (folder / "log").read_text(errors="replace")[-300:]
            last = json.loads((folder / _LAST).read_text()) if (folder / _LAST).exists() else []
            note(folder, last, f"process ended with {status}", end)
        left -= time.monotonic() - began if status != 0 else left
        (folder / _COUNTS).unlink(missing_ok=True)
    findings = folder / _FINDINGS
    return tried, [json.loads(line) for line in findings.read_text().splitlines()] if findings.exists() else []


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _ROOM_MB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
