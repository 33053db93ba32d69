"""A training begins with one screen of what it is, and ends with commands that can be typed."""

from __future__ import annotations

import logging
import re
import shlex
from dataclasses import dataclass

import lightning as L
import pytest
import torch

from appo.commands import cli
from appo.engines import HFEngine
from appo.losses import ClippedLoss
from tests.small_run import run

OPTIONS = ["--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens"]


@pytest.fixture
def messages(caplog):
    """Starts over with what the summary logs but for warnings, and returns it."""
    caplog.set_level(logging.INFO, logger="appo.training.callbacks.summary")

    def logged() -> list[str]:
        records = (record for record in caplog.records if record.name == "appo.training.callbacks.summary")
        texts = [record.getMessage() for record in records if record.levelno == logging.INFO]
        caplog.clear()
        return texts

    return logged


@pytest.mark.slow
def test_a_run_says_what_it_is_and_its_last_lines_can_be_typed(tmp_path, policy_folder, messages):
    folder = run("fit", tmp_path / "run", policy_folder, *OPTIONS)
    begin, results, following = messages()
    assert begin.splitlines() == [
        "this run trains",
        f"  policy    {policy_folder}: LlamaForCausalLM, 85,760 parameters in float32",
        "  data      WorldQuestions: prompts 64 train, 6 validation; 4 an iteration",
        "  tools     search, python; TagSyntax",
        "  engine    HFEngine",
        "  reward    EvenTokens",
        "  rollouts  4 roots and 2 branches a prompt, 24 tokens at most",
        "  method    BranchingScore, ProceduralAdvantage, ProceduralLoss",
        "  training  until trainer.max_epochs=1; 1 x cpu, precision 32-true",
        f"  results   {folder}",
    ]
    assert f"  policy        {folder / 'policy'}" in results
    commands = [shlex.split(line) for line in following.splitlines()[1:]]
    assert [command[:2] for command in commands] == [
        ["appo", "test"], ["appo", "test"], ["appo", "report"], ["appo", "fit"],
    ]  # fmt: skip
    for command in commands:
        cli.run(command[1:])
    assert (folder / "report.md").exists()
    assert "trainer.max_epochs=2;" in messages()[0]
    assert len((folder / "csv/version_1/metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_finished_run_says_so_and_how_it_goes_on(tmp_path, policy_folder, messages):
    run("fit", tmp_path, policy_folder, *OPTIONS)
    messages()
    run("fit", tmp_path, policy_folder, *OPTIONS, "--ckpt_path=last")
    _, finished, _, following = messages()
    assert finished == "this run is finished: trainer.max_epochs=1 is reached, --trainer.max_epochs=2 goes on"
    # Of a config that holds the checkpoint.
    cli.run(shlex.split(following.splitlines()[2])[1:])
    assert (tmp_path / "after/test.json").exists()
    run("fit", tmp_path, policy_folder, *OPTIONS, "--ckpt_path=last", "--rollout.stop_after_tokens=1")
    assert "rollout.stop_after_tokens=1 is reached, a larger number goes on" in messages()[1]


@dataclass(frozen=True)
class Hungry(ClippedLoss):
    """Asks the machine for more memory than any has."""

    def __call__(self, log_probs, entropies, batch):
        return torch.empty(2**50), {}


@pytest.mark.parametrize(
    ("limit", "advice"),
    [
        (16384, r"in \d+ sequences; model\.max_tokens_per_microbatch=\d+ takes less; appo plan"),
        (
            1,
            r"in 1 sequences; a sequence is not cut.*: model\.gradient_checkpointing=true does, or a rollout\.limits\.",
        ),
    ],
)
def test_an_update_that_needs_more_memory_than_there_is_says_which_option_takes_less(
    tmp_path, policy_folder, limit, advice
):
    with pytest.raises(MemoryError, match=rf"memory is spent in a micro-batch of [\d,]+ tokens {advice}") as spent:
        run(
            "fit", tmp_path, policy_folder, *OPTIONS, f"--model.max_tokens_per_microbatch={limit}",
            "--model.loss=tests.training.callbacks.test_summary.Hungry",
        )  # fmt: skip
    if limit > 1:
        tokens, lower = re.search(r"of ([\d,]+) tokens.*microbatch=(\d+) takes", str(spent.value)).groups()
        assert int(lower) == int(tokens.replace(",", "")) // 2
    assert "can't allocate memory" in str(spent.value.__cause__)


class HungryEngine(HFEngine):
    """Asks for as much when it samples several sequences."""

    def step(self):
        if self.num_in_flight > 1:
            torch.empty(2**50)
        return super().step()


def test_memory_that_is_spent_while_an_engine_samples_is_not_laid_to_the_update(tmp_path, policy_folder, caplog):
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(
            "fit", tmp_path, policy_folder, *OPTIONS,
            "--rollout.engine=tests.training.callbacks.test_summary.HungryEngine",
        )  # fmt: skip
    assert "memory is spent while the engine samples: fewer rollout.engine.max_batch_size" in caplog.text
    assert "max_tokens_per_microbatch" not in caplog.text


class Failing(L.Callback):
    """Raises in the second iteration."""

    def __init__(self, out_of_memory: bool = False) -> None:
        self.out_of_memory = out_of_memory

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.current_epoch == 1:
            raise torch.OutOfMemoryError("no more") if self.out_of_memory else RuntimeError("broken")


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_a_run_that_fails_says_how_it_goes_on(tmp_path, policy_folder, caplog, out_of_memory):
    with pytest.raises(RuntimeError, match="no more" if out_of_memory else "broken"):
        run(
            "fit", tmp_path, policy_folder, *OPTIONS, "--trainer.max_epochs=2",
            "--trainer.callbacks=tests.training.callbacks.test_summary.Failing",
            f"--trainer.callbacks.out_of_memory={str(out_of_memory).lower()}",
        )  # fmt: skip
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("model.max_tokens_per_microbatch below 16384" in text for text in said) == out_of_memory
    first, command = said[-1].splitlines()
    kind = "OutOfMemoryError" if out_of_memory else "RuntimeError"
    assert first == f"the run was cut off in iteration 1 by {kind}; without the cause it goes on with"
    cli.run([*shlex.split(command)[1:], "--trainer.callbacks=null"])
    assert (tmp_path / "policy/model.safetensors").is_file()
