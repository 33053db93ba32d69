"""docs/your_task.md and the source of docs/data.md, word by word."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from appo.commands.cli import run
from appo.monitoring.trajectory_files import read_trajectories

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "your_task.md").read_text()
FILES = {"json": "prices.jsonl", "yaml": "shop.yaml"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The four files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name, language, text in re.findall(r"^`([\w.]+)`[,.].*?```(\w+)\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
        assert name.endswith(".py") == (language == "python")
    yield tmp_path
    for name in ("shop_tool", "shop_reward"):
        sys.modules.pop(name, None)


def test_there_are_four_files(folder):
    assert {path.name for path in folder.iterdir()} == {
        "prices.jsonl",
        "shop_reward.py",
        "shop_tool.py",
        "shop.yaml",
    }


def test_answers_are_what_the_tool_says(folder):
    import shop_tool

    for line in (folder / "prices.jsonl").read_text().splitlines():
        row = json.loads(line)
        first, *second = (shop_tool.PRICES[word] for word in re.findall(r"lamp|chair|table|shelf", row["question"]))
        together = sum([first, *second]) if "together" in row["question"] else abs(first - sum(second))
        assert row["answer"] == together
    with pytest.raises(shop_tool.ToolError, match="the shop has lamp, chair, table, shelf, and no 'sofa'"):
        shop_tool.price("sofa")


def test_its_commands_run(folder, policy_folder, capsys):
    commands = [line.split()[1:] for line in re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()]
    assert [command for command, *_ in commands] == ["plan", "fit", "show"]
    # A policy that knows nothing, and less of everything.
    small = {
        "model.policy": policy_folder,
        "trainer.max_epochs": 1,
        "rollout.limits.max_response_tokens": 24,
        "data.max_prompt_tokens": 480,
        "trainer.enable_progress_bar": False,
    }
    options = [f"--{key}={value}" for key, value in small.items()]
    plan, fit, show = commands
    run([*plan, *options])
    run([*fit, *options])
    run(show)
    assert "fits: " in capsys.readouterr().out
    records = list(read_trajectories(folder / "runs/shop/trajectories/iteration_00000.jsonl.zst"))
    assert len(records) >= 8 * 4
    for record in records:
        parts = record["reward_parts"]
        assert record["reward"] == pytest.approx(parts["accuracy"] - 0.1 * parts["calls"])


def test_what_the_page_says_of_a_recipe_below_holds(folder, capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--config", "recipe:grpo", "--config", "shop.yaml", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["rollout"]["scorer"]["class_path"].endswith("NoBranching")
    assert config["trainer"]["default_root_dir"] == "runs/shop"


def test_the_source_of_the_data_page_asks_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "data.md").read_text(), re.DOTALL)
    names: dict = {"__name__": "tables"}
    exec(compile(code, "data.md", "exec", dont_inherit=True), names)
    source = names["TimesTables"](largest=4)
    train, test = source.load("train"), source.load("test")
    assert {question.text for question in train}.isdisjoint(question.text for question in test)
    assert len({question.id for question in (*train, *test)}) == 16
    for question in (*train, *test):
        first, second = map(int, re.findall(r"\d+", question.text))
        assert question.answers == (str(first * second),)
