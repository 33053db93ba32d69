"""What `appo new` writes runs as it stands."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from appo.__main__ import main
from appo.commands.cli import run
from appo.commands.new.examples import documents, examples

KINDS = ["function", "mathematics", "search", "mcp"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith(("my_task", "test_my_task"))]:
        del sys.modules[name]


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_a_task_pass(kind, request, tmp_path):
    run(["new", "my_task", "--kind", kind])
    sys.path.insert(0, str(Path("my_task").resolve()))  # as pytest does
    spec = importlib.util.spec_from_file_location("test_my_task", "my_task/test_my_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert len(tests) >= 2
    for test in tests:
        test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_complete_and_short(kind):
    run(["new", "tasks/my_task", "--kind", kind])
    questions = lines("tasks/my_task/train.jsonl") + lines("tasks/my_task/test.jsonl")
    demonstrated = {row["messages"][0]["content"] for row in lines("tasks/my_task/demonstrations.jsonl")}
    assert len({row["question"] for row in questions}) == 20
    assert not demonstrated & {row["question"] for row in questions}
    for path in Path("tasks/my_task").iterdir():
        assert "{{" not in path.read_text()
        limit = 120 if path.suffix in (".md", ".py", ".yaml") else 500
        assert max(map(len, path.read_text().splitlines())) <= limit, path
    readme = Path("tasks/my_task/README.md").read_text().splitlines()
    assert len([line for line in readme if line]) <= 10


def test_the_readme_trains_in_three_commands(capsys):
    run(["new", "my_task"])
    readme = Path("my_task/README.md").read_text()
    commands = [shlex.split(line)[1:] for line in readme.splitlines() if line.startswith("    appo ")]
    assert capsys.readouterr().out.splitlines()[2:] == [shlex.join(["appo", *command]) for command in commands]
    start, fit, *_ = commands
    run([*start, "--trainer.max_steps=5", "--trainer.enable_progress_bar=false"])
    run([*fit, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    assert Path("runs/my_task/policy/config.json").exists()


def test_a_missing_start_is_told_with_the_command_that_makes_it(capsys):
    run(["new", "my_task"])
    with pytest.raises(SystemExit):
        run(["fit", "--config", "my_task/config.yaml"])
    assert "`appo sft --config my_task/sft.yaml` first" in capsys.readouterr().err


def test_a_task_starts_with_a_model_of_the_users(policy_folder):
    run(["new", "my_task", "--policy", str(policy_folder)])
    assert not Path("my_task/sft.yaml").exists()
    assert not Path("my_task/demonstrations.jsonl").exists()
    config = yaml.safe_load(Path("my_task/config.yaml").read_text())
    assert config["model"]["policy"] == str(policy_folder)
    assert "syntax" not in config["rollout"]  # prompts describe the tool
    assert r"\boxed{}" in config["data"]["system_prompt"]
    options = ["--trainer.max_epochs=1", "--rollout.limits.max_response_tokens=16", "--data.max_prompt_tokens=400"]
    run(["fit", "--config", "my_task/config.yaml", "--trainer.enable_progress_bar=false", *options])
    assert Path("runs/my_task/policy/config.json").exists()


def test_three_calls_of_ten_are_wrong_and_results_are_what_the_tool_says():
    drawn = examples("function", 400)
    for example in drawn:
        left, sign, right = example.call.split()
        assert int(example.result) == int(left) + int(right) * (1 if sign == "+" else -1)
    shares = Counter(example.said == example.answer for example in drawn)
    assert 0.25 < shares[False] / 400 < 0.35
    texts = {each.title: each.text for each in documents()}
    for example in examples("search", 200):
        assert example.result == f"{example.call}: {texts[example.call]}"
        person = next(name for name in texts if name in example.question)
        assert example.answer in texts[person]


@pytest.mark.parametrize(
    ("folder", "rule"),
    [
        ("my-task", "folder must have the name of a Python module"),
        ("class", "folder must"),
        ("there", "must not exist"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(folder, rule, monkeypatch, capsys):
    Path("there").mkdir()
    monkeypatch.setattr(sys, "argv", ["appo", "new", folder])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert rule in capsys.readouterr().err
