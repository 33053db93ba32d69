"""Learning rates over steps, and what a resumed run makes of options that have changed."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from appo.training.schedules import WarmupCosine, apply_options, with_scheduler


def adamw(lr: float = 1.0, **options) -> torch.optim.AdamW:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr, **options)


def rates(optimizer, scheduler, steps: int) -> list[float]:
    """The learning rates of the next steps."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_rises_along_a_line_and_falls_along_a_cosine():
    optimizer = adamw()
    expected = [1 / 4, 2 / 4, 3 / 4, 1.0, 0.1 + 0.9 * 0.5, 0.1, 0.1]
    assert rates(optimizer, WarmupCosine(optimizer, 3, 5, 0.1), 7) == pytest.approx(expected)


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"warmup_steps must lie in \[0, total_steps = 5\), got 5"):
        WarmupCosine(adamw(), 5, 5)
    with pytest.raises(ValueError, match="without a metric, got ReduceLROnPlateau"):
        with_scheduler(adamw(), ReduceLROnPlateau)


def test_a_resumed_run_takes_the_options_of_its_config(caplog):
    old, new = adamw(5e-4, weight_decay=0.1), adamw(1e-6, betas=(0.5, 0.6))
    new.load_state_dict(old.state_dict())
    assert new.param_groups[0]["lr"] == 5e-4
    apply_options(new, None)
    group = new.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-6, (0.5, 0.6), 0.01)
    assert "the run goes on with lr=1e-06 of its config; the checkpoint had 0.0005" in caplog.text
    caplog.clear()
    apply_options(new, None)
    assert not caplog.records


def test_a_schedule_goes_on_from_the_new_rate():
    old, new = adamw(1.0), adamw(0.5)
    first, second = (LambdaLR(optimizer, lambda step: 1 / (step + 1)) for optimizer in (old, new))
    rates(old, first, 2)
    new.load_state_dict(old.state_dict())
    second.load_state_dict(first.state_dict())
    apply_options(new, second)
    assert rates(new, second, 2) == pytest.approx([0.5 / 3, 0.5 / 4])
