"""A user's modules are found beside a config and where a command is run, in every process that needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from appo.commands.modules import configs_of
from tests.small_run import CONFIG, SMALL, metrics

SCORER = """
from appo.scorers import Entropy

class Mine(Entropy):
    pass
"""

REWARD = """
def score(trajectory):
    return float(trajectory.token_ids.sum() % 7)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_modules_beside_a_config_and_where_a_command_is_run_are_found_on_all_ranks_and_by_workers(
    tmp_path, policy_folder
):
    here, beside, out = tmp_path / "here", tmp_path / "beside", tmp_path / "out"
    for folder in (here, beside):
        folder.mkdir()
    (here / "my_scorer.py").write_text(SCORER)
    (beside / "my_reward.py").write_text(REWARD)
    reward = {"class_path": "FunctionReward", "init_args": {"function": "my_reward:score", "num_processes": 1}}
    config = {"rollout": {"scorer": {"class_path": "my_scorer.Mine"}, "reward": reward}}
    (beside / "own.yaml").write_text(yaml.safe_dump(config))
    args = [
        "fit", "--config", CONFIG, "--config", str(beside / "own.yaml"), *SMALL, "--trainer.max_epochs=1",
        "--trainer.strategy=ddp", "--trainer.devices=2", f"--model.policy={policy_folder}",
        f"--trainer.default_root_dir={out}",
    ]  # fmt: skip
    # Like the script that pip installs: `python -m` searches the present folder by itself.
    script = tmp_path / "appo"
    script.write_text("from appo.__main__ import main\nmain()\n")
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(
        [sys.executable, str(script), *args], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    # Nor does it print what a user can do nothing about.
    assert not any(word in result.stderr for word in ("Tip: ", "num_workers", "Warning", "deprecated"))
    assert 0 < float(metrics(out)[0]["rollout/reward_mean"]) < 7


def test_an_installed_module_is_not_replaced_by_one_of_the_same_name(tmp_path):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "mine.yaml").touch()
    script = (
        "import sys\nfrom appo.commands.modules import search_folders\n"
        f"search_folders(['--config={tmp_path / 'mine.yaml'}'])\n"
        f"import colorsys\nprint(sys.path[-1] == {str(tmp_path)!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


@pytest.mark.parametrize(
    ("args", "configs"),
    [
        ([], []),
        (["--help"], []),
        (["--config", "a.yaml", "--config=b.yaml", "--seed_everything", "1"], ["a.yaml", "b.yaml"]),
        (["--config"], []),
    ],
)
def test_configs_are_found_in_order_and_a_command_may_have_no_options(args, configs):
    assert list(configs_of(args)) == configs
