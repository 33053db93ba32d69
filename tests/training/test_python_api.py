"""Module, data and callback as they are built without the command line."""

from __future__ import annotations

import gc
from dataclasses import fields
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from appo import APPOModule, RolloutCallback, RolloutDataModule
from appo.advantages import ProceduralAdvantage
from appo.commands.cli import run
from appo.engines import HFEngine
from appo.monitoring.trajectory_files import read_trajectories
from appo.prompts import WorldQuestions
from appo.rewards import AnswerReward
from appo.rollouts import Branching, Limits
from appo.scorers import BranchingScore
from appo.tools import TagSyntax
from appo.training.callbacks import EvaluationCallback, ExportPolicy
from appo.training.options import SamplingOptions
from tests.small_run import EvenTokens

DATA = {"prompts_per_iteration": 4, "prompts_per_minibatch": 2, "max_prompt_tokens": 64}


def fitted(policy, folder: Path, *callbacks: L.Callback, data=None, **options) -> L.Trainer:
    """A trainer after one iteration of a small run."""
    rollout = RolloutCallback(
        reward=EvenTokens(), branching=Branching(num_trajectories=4, num_roots=2), limits=Limits(24), **options
    )
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, callbacks=[rollout, *callbacks], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = APPOModule(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    trainer.fit(module, RolloutDataModule(WorldQuestions(), **(data or DATA)))
    return trainer


def roots(folder: Path) -> list[list[int]]:
    records = read_trajectories(folder / "trajectories/iteration_00000.jsonl.zst")
    return [record["token_ids"] for record in records if record["branch_position"] is None]


def as_config(component) -> dict:
    """A component as `--print_config` shows it."""
    options = {field.name: getattr(component, field.name) for field in fields(component) if field.init}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def test_constructors_have_the_defaults_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--model.policy=policy", "--data.source=WorldQuestions", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    rollout = RolloutCallback()
    components = {
        "engine": (rollout.sampler.engine, HFEngine()),
        "scorer": (rollout.scorer, BranchingScore()),
        "advantage": (rollout.advantage, ProceduralAdvantage()),
        "reward": (rollout.sampler.reward.reward, AnswerReward()),
        "syntax": (rollout.sampler.syntax, TagSyntax()),
    }
    for name, (taken, expected) in components.items():
        assert taken == expected
        shown = config["rollout"][name]
        assert shown["class_path"].endswith(f".{type(taken).__name__}")
        assert shown.get("init_args", {}) == as_config(taken)
    assert config["model"]["loss"]["init_args"] == as_config(APPOModule("policy").loss)
    for section in ("branching", "sampling", "evaluation"):
        assert config["rollout"][section] == as_config(getattr(rollout, section))


def test_callbacks_do_not_share_an_engine():
    assert RolloutCallback().sampler.engine is not RolloutCallback().sampler.engine


def test_a_policy_may_be_a_model_with_its_tokenizer(tmp_path, policy_folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy_folder), AutoTokenizer.from_pretrained(policy_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "changed")
    tokenizer.save_pretrained(tmp_path / "changed")
    trainer = fitted((model, tokenizer), tmp_path / "pair", ExportPolicy())
    fitted(tmp_path / "changed", tmp_path / "path", ExportPolicy())
    assert trainer.datamodule.tokenizer is tokenizer
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "policy").state_dict() for name in ("pair", "path")
    )
    assert roots(tmp_path / "pair") == roots(tmp_path / "path")
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours["lm_head.weight"], model.state_dict()["lm_head.weight"])  # theirs is trained


def test_the_folder_of_a_model_goes_with_the_module(policy_folder):
    pair = AutoModelForCausalLM.from_pretrained(policy_folder), AutoTokenizer.from_pretrained(policy_folder)
    module = APPOModule(pair)
    folder = Path(module.policy_folder)
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == pair[0].num_parameters()
    del module
    gc.collect()
    assert not folder.exists()


def test_a_pair_of_something_else_is_refused(policy_folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy_folder), AutoTokenizer.from_pretrained(policy_folder)
    with pytest.raises(ValueError, match=r"a model and its tokenizer of transformers, got \(Linear, .*Tokenizer"):
        APPOModule((torch.nn.Linear(2, 2), tokenizer))
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"the tokenizer of model\.policy must have a chat template"):
        APPOModule((model, tokenizer))


def test_data_without_a_module_needs_a_tokenizer():
    data = RolloutDataModule(WorldQuestions(), **DATA)
    with pytest.raises(ValueError, match=r"data\.tokenizer must be given where no APPOModule is trained, got None"):
        data.setup("fit")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_taken_at_the_temperature_of_sampling(tmp_path, policy_folder, temperature):
    # A check after every update holds the log-probs of the engine against those of the module.
    trainer = fitted(policy_folder, tmp_path, sampling=SamplingOptions(temperature=temperature))
    assert trainer.lightning_module.temperature == temperature
    (record, *_) = read_trajectories(tmp_path / "trajectories/iteration_00000.jsonl.zst")
    taken = torch.tensor(record["old_log_probs"])
    torch.testing.assert_close(taken, torch.tensor(record["behavior_log_probs"]), rtol=0.0, atol=1e-4)


def test_nothing_is_validated_unless_a_callback_does_it(tmp_path, policy_folder):
    assert not fitted(policy_folder, tmp_path / "without").callback_metrics.keys() & {"validation/reward"}
    data = {**DATA, "num_validation": 2}
    metrics = fitted(policy_folder, tmp_path / "with", EvaluationCallback(), data=data).callback_metrics
    assert [name for name in metrics if name.startswith("validation/")]
