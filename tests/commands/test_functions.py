"""Functions of the user's in a config, as a tool and as a reward."""

from __future__ import annotations

import yaml

from appo.commands.cli import run
from tests.small_run import CONFIG, SMALL, metrics


def test_a_run_offers_a_function_as_a_tool_and_scores_by_another(tmp_path, policy_folder):
    own = tmp_path / "own.yaml"
    tool = {"class_path": "FunctionTool", "init_args": {"function": "tests.tools.functions:shout", "timeout_s": 5.0}}
    reward = {"class_path": "FunctionReward", "init_args": {"function": "tests.rewards.functions:length"}}
    own.write_text(yaml.safe_dump({"rollout": {"tools": [tool], "reward": reward}}))
    out = tmp_path / "out"
    args = ["fit", "--config", CONFIG, "--config", str(own), *SMALL, "--trainer.max_epochs=1"]
    run([*args, f"--model.policy={policy_folder}", f"--trainer.default_root_dir={out}"])
    (row,) = (row for row in metrics(out) if row["rollout/reward_mean"])
    assert float(row["rollout/reward_mean"]) > 1.0
    (saved,) = (yaml.safe_load(path.read_text()) for path in out.glob("**/config.yaml"))
    assert saved["rollout"]["tools"] == [{**tool, "class_path": "appo.tools.FunctionTool"}]
