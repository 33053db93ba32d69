"""A training begins with one screen of what it is, and ends with commands that can be typed."""

from __future__ import annotations

import logging
import shlex

import lightning as L
import pytest
import torch

from appo.commands import cli
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
