"""In what order a run ends."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from appo.distributed.comm import RankError
from appo.training.callbacks.rollout import RolloutCallback


@pytest.mark.parametrize(
    ("error", "expected"),
    [(RankError("another process has stopped"), ["kill SIGKILL", "stop"]), (ValueError("a reward"), ["stop"])],
)
def test_a_lost_rank_is_killed_before_an_engine_could_wait_for_it(error, expected, monkeypatch):
    done: list[str] = []
    callback = RolloutCallback()
    monkeypatch.setattr(callback.sampler, "stop", lambda: done.append("stop"))
    launcher = SimpleNamespace(kill=lambda number: done.append(f"kill {signal.Signals(number).name}"))
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    callback.on_exception(trainer, None, error)
    assert done == expected
