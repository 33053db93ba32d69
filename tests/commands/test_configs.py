from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from appo.commands.cli import run
from appo.losses import ClippedLoss, ProceduralLoss
from tests.small_run import CONFIG, FEW_TOKENS, metrics

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("**/*.yaml"))
OVERLAYS = {"constant_future", "random_branching", "stage_markers"}
ON_TOP = [path for path in CONFIGS if path.stem in OVERLAYS or path.parent.name in ("benchmarks", "evidence", "paper")]
STARTS = [path for path in CONFIGS if path.stem.endswith("sft")]
PRESETS = [path for path in CONFIGS if path not in (*ON_TOP, *STARTS)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_accepted(path, capsys):
    command = "sft" if path in STARTS else "fit"
    below = path.parents[1] / "gates_sft.yaml" if path in STARTS else CONFIG
    base = ["--config", str(below)] if path in ON_TOP else []
    with pytest.raises(SystemExit) as exit_info:
        run([command, *base, "--config", str(path), "--print_config"])
    assert exit_info.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_trains_by_itself(path, tmp_path, policy_folder):
    run(
        [
            "fit",
            "--config",
            str(path),
            *FEW_TOKENS,
            "--trainer.max_epochs=1",
            "--rollout.reward=tests.small_run.EveryOtherFlat",
            f"--model.policy={policy_folder}",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    (row,) = (row for row in metrics(tmp_path) if row["rollout/reward_mean"])
    wanted, made = float(row["rollout/branches_wanted"]), float(row["rollout/branches_made"])
    # Where it asks for roots that differ, two prompts of a mini-batch may have none.
    assert made == wanted or (path.stem in ("appo", "codes", "forks", "gates", "houses") and made > 0)
    branching = {
        "aepo",
        "appo_paper",
        "appo_released",
        "appo",
        "arpo",
        "codes",
        "forks",
        "gates",
        "houses",
        "tree_grpo",
    }
    assert (wanted > 0) == (path.stem in branching)
    # About half of the questions train nothing; only DAPO looks for others in their place.
    assert (float(row["rollout/prompts_replaced"]) > 0) == (path.stem == "dapo")
    assert float(row["train/grad_norm"]) > 0


def test_interpolations_see_what_the_command_line_says(capsys):
    configs = [str(CONFIGS[0].with_name(name)) for name in ("appo.yaml", "grpo.yaml")]
    with pytest.raises(SystemExit):
        run(
            [
                "fit",
                "--config",
                configs[0],
                "--config",
                configs[1],
                "--rollout.branching.num_trajectories=5",
                "--print_config",
            ]
        )
    assert yaml.safe_load(capsys.readouterr().out)["rollout"]["branching"]["num_roots"] == 5


def resolved(capsys, *options: str, config: str = CONFIG):
    with pytest.raises(SystemExit):
        run(["fit", "--config", config, *options, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("recipe", "aggregation"),
    [
        ("grpo", "sequence-mean"),
        ("gspo", "sequence-mean"),
        ("dapo", "token-mean"),
        ("cispo", "token-mean"),
        ("dr_grpo", "constant"),
    ],
)
def test_a_recipe_averages_as_its_paper_does(recipe, aggregation, capsys):
    config = resolved(capsys, config=str(CONFIGS[0].with_name(f"{recipe}.yaml")))
    assert config["model"]["loss"]["init_args"]["aggregation"] == aggregation


def test_the_control_of_the_future_likelihood_has_its_factor_and_nothing_else(capsys):
    def weigh(*options: str) -> tuple[ProceduralLoss, Tensor]:
        loss = ProceduralLoss(**resolved(capsys, *options)["model"]["loss"]["init_args"])
        return loss, loss.weigh(torch.tensor([[0.3, -0.5, 0.1]]), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))[
            0
        ]

    own, factors = weigh()
    control, constant = weigh("--config", str(CONFIGS[0].with_name("constant_future.yaml")))
    assert not (factors == 1.0 + own.future_weight).all()
    assert (constant == 1.0 + own.future_weight).all()
    assert replace(control, future_clip=own.future_clip) == own


def test_another_component_begins_with_its_own_defaults(capsys):
    loss = resolved(capsys, "--model.loss.clip_low=0.1", "--model.loss=ClippedLoss")["model"]["loss"]
    given = {f.name: f.default for f in fields(ClippedLoss)}
    assert loss == {"class_path": "appo.losses.ClippedLoss", "init_args": given}
    # That loss differs from these.
    assert given["clip_high"] != ProceduralLoss.clip_high


def test_the_same_component_keeps_its_options(capsys):
    options = resolved(capsys, "--model.loss=ProceduralLoss", "--model.loss.clip_low=0.1")["model"]["loss"]["init_args"]
    assert (options["ratio_to"], options["clip_low"]) == ("sampling", 0.1)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "sft"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run([command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    ours = [line for line in text.splitlines() if line.strip().startswith(("--rollout.", "--data.", "--model."))]
    assert ours
    # jsonargparse prints an option without a docstring as "(type: ...)" alone.
    bare = [line for line in ours if line.split(None, 2)[-1].startswith("(") and ".help" not in line]
    assert bare == []


def test_options_of_a_component_are_explained(capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--rollout.scorer.help=BranchingScore"])
    assert "Tokens after which a log-ratio counts half in the gain." in " ".join(capsys.readouterr().out.split())


def test_a_list_of_tools_takes_servers_beside_tools_and_rules_for_calls(tmp_path, capsys):
    overlay = {
        "rollout": {
            "syntax": {
                "class_path": "ChatTemplateSyntax",
                "init_args": {"template_options": {"enable_thinking": False}},
            },
            "tools": [
                {"class_path": "PythonTool"},
                {"class_path": "MCPTools", "init_args": {"command": ["server", "--fast"], "include": ["a"]}},
            ],
            "limits": {"max_calls_per_tool": {"python": 5}, "at_tool_limit": "refuse"},
        }
    }
    (tmp_path / "tools.yaml").write_text(yaml.safe_dump(overlay))
    config = str(CONFIGS[0].with_name("appo.yaml"))
    options = ["--config", str(tmp_path / "tools.yaml"), "--rollout.limits.max_refusals=1", "--print_config"]
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", config, *options])
    captured = capsys.readouterr()
    assert exit_info.value.code == 0, captured.err
    rollout = yaml.safe_load(captured.out)["rollout"]
    limits = {name: rollout["limits"][name] for name in ("max_calls_per_tool", "at_tool_limit", "max_refusals")}
    assert limits == {"max_calls_per_tool": {"python": 5}, "at_tool_limit": "refuse", "max_refusals": 1}
    assert rollout["tools"][1]["init_args"]["command"] == ["server", "--fast"]
    assert rollout["syntax"]["init_args"]["template_options"] == {"enable_thinking": False}
