"""Every mistake of a user ends at once, with a message that names key, rule and value."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from appo.__main__ import main
from appo.commands.cli import run
from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import Reward, RewardError
from tests import small_run
from tests.small_run import CONFIG


def fit(tmp_path: Path, *options: str) -> None:
    run(["fit", "--config", CONFIG, f"--trainer.default_root_dir={tmp_path}", *options])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--rollout.num_trajectory=4", ["rollout.num_trajectory"]),
        ("--rollout.branching.num_roots=many", ["rollout.branching.num_roots", "many"]),
        ("--rollout.branching.when=never", ["rollout.branching.when", "never"]),
        ("--rollout.scorer=Entrpy", ["Entrpy", "did you mean 'Entropy'", "BranchingScore"]),
        ("--rollout.scorer.half_life=0", ["half_life must be positive or null, got 0"]),
        ("--rollout.rewards.timeout_s=0", ["rollout.rewards.timeout_s must be positive, got 0"]),
        ("--rollout.rewards.on_failure=skip", ["rollout.rewards.on_failure", "skip"]),
        (
            "--rollout.branching.num_trajectories=4",
            ["rollout.branching.num_trajectories must be at least rollout.branching.num_roots = 6, got 4"],
        ),
        ("--data.prompts_per_minibatch=5", ["data.prompts_per_minibatch must divide", "got 5"]),
        ("--model.max_grad_norm=-1", ["model.max_grad_norm must not be negative, got -1"]),
    ],
)
def test_a_bad_option_is_refused_by_the_parser(tmp_path, capsys, option, words):
    with pytest.raises(SystemExit) as exit_info:
        fit(tmp_path, option)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_a_missing_model_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.policy must be a Hugging Face model folder .* got '/nowhere'"):
        fit(tmp_path, "--model.policy=/nowhere")


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path, policy_folder):
    bare = tmp_path / "bare"
    shutil.copytree(policy_folder, bare)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    (bare / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(bare)
    with pytest.raises(ValueError, match=r"model\.policy must have a chat template"):
        fit(tmp_path, f"--model.policy={bare}")


def test_a_precision_that_rounds_more_than_the_model_is_refused(tmp_path, policy_folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        fit(tmp_path, f"--model.policy={policy_folder}", "--trainer.precision=bf16-true")
    assert "trainer.precision must be 32-true or bf16-mixed, got bf16-true" in capsys.readouterr().err


def test_a_prompt_beyond_the_limit_is_named(tmp_path, policy_folder):
    with pytest.raises(ValueError, match=r"at most data\.max_prompt_tokens = 5 tokens, question '.*' has \d+"):
        fit(tmp_path, f"--model.policy={policy_folder}", "--data.max_prompt_tokens=5")


def test_an_empty_data_file_is_refused(tmp_path, policy_folder):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        fit(tmp_path, f"--model.policy={policy_folder}", "--data.source=JsonlQuestions", f"--data.source.train={empty}")


def test_responses_longer_than_the_policy_can_see_are_refused(tmp_path, policy_folder):
    with pytest.raises(ValueError, match=r"must not exceed the 512 positions of model\.policy, got 64 \+ 9999"):
        fit(tmp_path, f"--model.policy={policy_folder}", "--rollout.limits.max_response_tokens=9999")


@dataclass(frozen=True)
class Undefined(Reward):
    """What is left of a reward that divides by nothing."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(float("nan"), {"accuracy": 0.0})


def test_a_reward_that_is_no_number_names_the_trajectory(tmp_path, policy_folder):
    with pytest.raises(
        RewardError, match=r"trajectory 1 of 4, of prompt '\S+' \(ValueError: reward must be finite, got nan"
    ):
        small_run.run("fit", tmp_path, policy_folder, "--rollout.reward=tests.commands.test_bad_input.Undefined")


def test_an_unknown_command_lists_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["appo", "train"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert "no command is named 'train'; commands: fit" in capsys.readouterr().err
