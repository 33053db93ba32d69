"""One of two processes is killed, or stands still, in every phase of an iteration, on either side of its collectives.

The whole matrix takes minutes: ``pytest -m faults``.
"""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
import torch

from appo.__main__ import main
from appo.commands.run_folder import reserved
from tests.copied_processes import CONTEXT, run_here
from tests.distributed.whole_runs import ROOT, arguments, environments

pytestmark = [pytest.mark.distributed, pytest.mark.faults]

TIMEOUT_S = 20

PHASES = ("weights", "sampling", "update", "metrics", "checkpoint")


@pytest.fixture(autouse=True)
def is_asked_for(request):
    if "faults" not in request.config.option.markexpr:
        pytest.skip("the whole matrix takes minutes: pytest -m faults")


@pytest.mark.parametrize("has_worked", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", PHASES)
def test_the_other_process_ends_names_the_phase_and_leaves_the_run_whole(
    tmp_path, policy_folder, phase, rank, number, has_worked
):
    folder, faulty = tmp_path / "run", "tests.distributed.failing_parts.SignaledInPhase"
    args = arguments(
        folder, policy_folder, "ddp", 2, "--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens",
        f"--rollout.rank_timeout_s={TIMEOUT_S}", f"--trainer.callbacks={faulty}", f"--trainer.callbacks.phase={phase}",
        f"--trainer.callbacks.rank={rank}", f"--trainer.callbacks.number={number.value}",
        f"--trainer.callbacks.has_worked={str(has_worked).lower()}",
    )  # fmt: skip
    with tempfile.NamedTemporaryFile("r") as output:
        whole = [{**os.environ, **environment} for environment in environments(2)]
        processes = [
            CONTEXT.Process(target=run_here, args=(main, args, output.name, str(ROOT), environment))
            for environment in whole
        ]
        for process in processes:
            process.start()
        lost, other = processes[rank], processes[1 - rank]
        try:
            other.join(150)
            assert other.exitcode, output.read()[-3000:]
            if number == signal.SIGSTOP:
                os.kill(lost.pid, signal.SIGCONT)
            lost.join(60)
            assert lost.exitcode
        finally:
            for process in processes:
                process.kill()
                process.join()
        said = output.read()
    # One that has just entered a phase may be missed by who has not left the one before.
    assert any(f"in phase {name!r}" in said for name in (phase, PHASES[PHASES.index(phase) - 1]))
    assert "has stopped or did not answer" in said
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] in (0, int(phase == "checkpoint"))
    with reserved(folder):
        pass
