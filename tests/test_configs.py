from pathlib import Path

import pytest
import yaml

from appo.cli import run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_accepted(path, capsys):
    command = "sft" if path.stem == "cold_start" else "fit"
    base = [] if command == "sft" else ["--config", str(path.with_name("quickstart.yaml"))]
    with pytest.raises(SystemExit) as exit_info:
        run([command, *base, "--config", str(path), "--print_config"])
    assert exit_info.value.code == 0, capsys.readouterr().err


def test_interpolations_see_what_the_command_line_says(capsys):
    configs = [str(CONFIGS[0].with_name(name)) for name in ("quickstart.yaml", "grpo.yaml")]
    with pytest.raises(SystemExit):
        run(["fit", "--config", configs[0], "--config", configs[1], "--rollout.num_trajectories=5", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["rollout"]["num_initial"] == 5


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
    assert "Discount of later log-ratios, in [0, 1]." in capsys.readouterr().out
