"""The paper's table of settings, by the keys of its preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.small_run import CONFIG

PAPER = {
    "rollout.branching.num_roots": 4,
    "rollout.branching.num_trajectories": 16,
    "rollout.branching.selection": "per_trajectory",
    "rollout.branching.rounds": 1,
    "rollout.branching.siblings": 1,
    "rollout.branching.when": "minibatch",
    "rollout.branching.split": "resample",
    "rollout.branching.parents": "any",
    "rollout.branching.train_on": "roots",
    "rollout.branching.exclude": [],
    "rollout.scorer.half_life": 32,
    "rollout.scorer.clip": 0.2,
    "rollout.scorer.high_only": True,
    "rollout.scorer.scope": "trajectory",
    "rollout.scorer.strict": False,
    "model.loss.future_half_life": 32,
    "model.loss.future_clip": 0.2,
    "model.loss.high_only": True,
    "model.loss.future_weight": 0.5,
    "model.loss.ratio_to": "sampling",
    "model.loss.aggregation": "sequence-mean",
    "model.loss.rows": "all",
    "model.loss.kl_coef": 0,
    "model.loss.dual_clip": None,
    "model.loss.sequence_filter": False,
    "data.prompts_per_iteration": 128,
    "data.prompts_per_minibatch": 16,
    "rollout.limits.max_response_tokens": 4096,
}


def _value(config: dict[str, Any], name: str) -> Any:
    for key in name.split("."):
        config = config.get("init_args", config) if key not in config else config
        config = config[key]
    return config


def test_every_setting_of_the_paper_is_a_key_with_its_value():
    config = yaml.safe_load((Path(CONFIG).parent / "appo_paper.yaml").read_text())
    assert {name: _value(config, name) for name in PAPER} == PAPER
    assert config["rollout"]["scorer"]["class_path"] == "BranchingScore"
    assert config["rollout"]["advantage"]["class_path"] == "DualGroupAdvantage"
    assert config["model"]["loss"]["class_path"] == "ProceduralLoss"
    # Two epochs over the questions.
    assert config["trainer"]["max_epochs"] == 2 * 4000 // 128
