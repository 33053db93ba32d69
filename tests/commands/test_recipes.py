"""Recipes come with the package, and mean the user's folder."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from appo.__main__ import main
from appo.commands.ablate.spec import AblationSpec
from appo.commands.cli import run
from appo.commands.recipes import config_path, recipe_names, with_paths
from tests.small_run import SMALL, metrics

ROOT = Path(__file__).parents[2]
CONFIGS = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that the wheel is unpacked in."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def appo(site: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appo", *args]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_every_config(installed, tmp_path):
    text = appo(installed, tmp_path, "recipes").stdout
    assert {line.split()[0] for line in text.splitlines()[2:]} == CONFIGS
    assert appo(installed, tmp_path, "recipes", "benchmarks/gaia").stdout == config_text("benchmarks/gaia")


def config_text(name: str) -> str:
    return (ROOT / f"configs/{name}.yaml").read_text()


def test_from_the_wheel_a_missing_start_is_told_before_anything_else(installed, tmp_path):
    done = appo(installed, tmp_path, "fit", "--config", "recipe:gates")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "runs/gates_sft/policy" in line
    assert "`appo sft --config recipe:gates_sft` first" in line


def test_every_recipe_has_a_line_that_says_what_it_is_and_what_it_starts_with(capsys):
    run(["recipes"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == len(CONFIGS)
    for line in lines:
        name, _, text = line.partition("  ")
        assert re.sub(r" \(after recipe:[\w/]+\)$", "", text).endswith(".")
        config = yaml.safe_load(config_text(name))
        assert (config.get("model", {}).get("policy") == "runs/sft/policy") == line.endswith("(after recipe:sft)")


@pytest.mark.parametrize("command", ["fit", "test", "plan", "pilot"])
def test_who_needs_a_policy_is_told_who_writes_it(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run([command, "--config", "recipe:grpo", "--config=recipe:houses"])
    assert "run `appo sft --config recipe:houses_sft` first" in capsys.readouterr().err


def test_a_recipe_trains_in_the_folder_of_the_user(tmp_path, monkeypatch, policy_folder):
    monkeypatch.chdir(tmp_path)
    Path("policy").symlink_to(policy_folder)
    run(["fit", "--config", "recipe:grpo", "--model.policy", "policy", *SMALL, "--trainer.max_epochs=1"])
    assert len([row for row in metrics(tmp_path / "runs/grpo") if row["rollout/reward_mean"]]) == 1


def test_options_name_recipes_in_both_spellings():
    path = str(ROOT / "configs/benchmarks/gaia.yaml")
    for args in (["--config", "recipe:benchmarks/gaia"], ["--config=recipe:benchmarks/gaia"]):
        assert "=".join(with_paths(args)) == f"--config={path}"
    assert with_paths(["--model.policy", "recipe:grpo"]) == ["--model.policy", "recipe:grpo"]


def test_an_ablation_compares_recipes(tmp_path):
    overlay = "recipe:random_branching"
    spec = AblationSpec({"config": (None, overlay)}, (0,), 1, tmp_path, config=("recipe:appo",))
    _, random = spec.combinations
    assert random.name == "config=random_branching"
    assert random.args == tuple(f"--config={config_path(name)}" for name in ("recipe:appo", overlay))


def test_an_unknown_recipe_is_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["appo", "fit", "--config", "recipe:grop"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "error: config must name a recipe that `appo recipes` lists, got 'recipe:grop' (did you mean 'grpo'?)\n"
    )


def test_names_of_recipes_are_paths_below_their_folder():
    assert set(recipe_names()) == CONFIGS
    assert recipe_names()[0] == "aepo"
