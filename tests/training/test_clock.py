"""A clock that jumps, as one that is set does, changes nothing: durations and limits are measured otherwise."""

from __future__ import annotations

import re
import time
from itertools import cycle
from pathlib import Path

import appo
from appo.commands.record.repeat import compared
from tests.small_run import metrics, run

SOURCE = Path(appo.__file__).parent

OF_DAY = re.compile(r"\btime\.time\(|\bfrom time import .*\btime\b|datetime\.(now|utcnow|today)\(")


def test_only_what_names_a_day_asks_for_it():
    asking = {str(path.relative_to(SOURCE)) for path in SOURCE.glob("**/*.py") if OF_DAY.search(path.read_text())}
    # The age of what earlier processes have stored, and `Retry-After` where it is a date.
    assert asking == {"tools/search/store.py", "workers/retries.py"}


def test_a_run_under_a_clock_that_jumps_is_the_same(small_run, tmp_path, policy_folder, monkeypatch):
    clock, days = time.time, cycle([86_400.0, -86_400.0, 0.0])
    monkeypatch.setattr(time, "time", lambda: clock() + next(days))
    jumped = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens"
    )
    assert compared(small_run, jumped) == [
        "all metrics of 1 iterations are equal, times and memory aside",
        "the weights are equal to the bit",
    ]
    (row,) = [row for row in metrics(jumped) if row["train/loss"]]
    seconds = [float(value) for name, value in row.items() if re.search(r"(?<!_per)_s$", name) and value]
    assert len(seconds) > 3
    assert all(0.0 <= value < 3600.0 for value in seconds)
