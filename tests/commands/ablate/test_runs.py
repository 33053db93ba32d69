"""Mistakes that only the parser of ``appo fit`` can know, found before anything runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import machinery

import pytest

from appo.commands import cli
from appo.commands.ablate.folders import differences
from appo.commands.ablate.options import read_spec
from appo.commands.ablate.runs import resolve_runs
from tests.small_run import CONFIG

LAG = "rollout.sampling.lag=0,1"


def refused(capsys, tmp_path, *args: str) -> str:
    """The error of an ablation that must not run."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_info:
        cli.run(["ablate", "--config", CONFIG, "--seeds=0", "--tokens=100", f"--out={out}", *args])
    assert exit_info.value.code == 2
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rollout.scorr=Entropy"], ["rollout.scorr", "refuses the combination scorr=Entropy, seed 0"]),
        (["rollout.scorer=Entropy,Entrpy"], ["Entrpy", "did you mean 'Entropy'", "the combination scorer=Entrpy"]),
        (["rollout.scorer.clip=0.2,1.5"], ["clip must lie in [0, 1), got 1.5", "combination clip=1.5"]),
        (["rollout.branching.num_roots=many"], ["rollout.branching.num_roots", "many"]),
        (
            ["rollout.scorer=[Entropy, {class_path: Entropy}]"],
            ["combinations must differ, got scorer=Entropy-", "which are the same configuration"],
        ),
        ([LAG, "--config=/nowhere.yaml"], ["/nowhere.yaml"]),
        ([LAG, "--trainer.max_time=00:01:00:00"], ["trainer.max_time must be null in an ablation"]),
        ([LAG, "--trainer.logger=false"], ["trainer.logger must be null in an ablation", "got false"]),
        ([LAG, "--trainer.max_steps=5"], ["trainer.max_steps must be -1 in an ablation", "got 5"]),
        (
            [LAG, "--data.source=JsonlQuestions", "--data.source.train=q.jsonl"],
            ["metric must be of other questions than those of the test, of which data.source has none"],
        ),
        (
            [
                LAG, "--data.source=JsonlQuestions", "--data.source.train=q.jsonl",
                "--metric=rollout/accuracy", "--curve=validation/accuracy",
            ],
            ["curve must be of other questions than those of the validation"],
        ),
    ],
)  # fmt: skip
def test_a_combination_that_the_parser_refuses_is_named_before_the_first_run(tmp_path, capsys, args, words):
    message = refused(capsys, tmp_path, "--vary", *args)
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_a_config_that_is_no_yaml_is_named(tmp_path, capsys):
    overlay = tmp_path / "broken.yaml"
    overlay.write_text("rollout: [")
    message = refused(capsys, tmp_path, f"--vary=config=null,{overlay}")
    assert "the combination config=broken, seed 0" in message


def test_missing_options_of_the_ablation_are_refused_like_those_of_fit(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.run(["ablate", "--config", CONFIG, f"--vary={LAG}", "--seeds=0", "--out=x"])
    assert exit_info.value.code == 2
    assert "error: tokens must be given" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "user"), [("matplotlib", "the figure"), ("scipy", "the interval of a mean")])
def test_without_what_the_report_needs_nothing_begins(tmp_path, capsys, monkeypatch, package, user):
    find = machinery.PathFinder.find_spec
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(
        machinery.PathFinder, "find_spec",
        lambda name, *rest: None if name.startswith(package) else find(name, *rest),
    )  # fmt: skip
    message = refused(capsys, tmp_path, f"--vary={LAG}")
    assert f'{user} needs the package {package}, which is not installed: pip install "appo[report]"' in message


def test_foreign_files_are_left_alone(tmp_path, capsys):
    folder = tmp_path / "runs/lag=0/seed_0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(SystemExit):
        cli.run(
            [
                "ablate",
                "--config",
                CONFIG,
                "--seeds=0",
                "--tokens=1",
                f"--out={tmp_path}",
                f"--vary={LAG}",
            ]
        )
    assert "lag=0/seed_0 without a specification.json" in capsys.readouterr().err
    assert (folder / "thesis.tex").exists()


def test_help_says_what_becomes_of_max_epochs(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.run(["ablate", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "trainer.max_epochs of the configuration" in text
    assert "--vary KEY=VALUES" in text


def test_prompts_that_are_set_win_over_those_of_an_overlay(tmp_path):
    overlay = tmp_path / "many.yaml"
    overlay.write_text("data: {prompts_per_iteration: 64, prompts_per_minibatch: null}\n")
    spec = read_spec(
        ["--config", CONFIG, f"--vary=config=null,{overlay}", "--seeds=0", "--tokens=9", f"--out={tmp_path}"]
    )
    base, many = spec.combinations
    runs = resolve_runs(spec, [base, many, replace(many.with_prompts(26, 13), name="matched")], cli.resolve_fit)
    assert [run.prompts for run in runs] == [(32, 16), (64, 64), (26, 13)]
    assert [run.folder.parent.name for run in runs[1:]] == ["config=many", "config=many,prompts_per_iteration=26"]
    assert {run.policy for run in runs} == {"runs/sft/policy"}


def test_differences_are_named_with_both_values():
    text = differences({"a": 1, "b": 2, "d": None}, {"a": 1, "b": 3, "c": "x"})
    assert text == 'b is 2 there, 3 here; c is absent there, "x" here; d is null there, absent here'
    many = {str(i): i for i in range(7)}
    assert differences(many, {}).endswith("and 2 options more")
