"""Misspelled options are told at once, with the file, the line and what may be meant."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appo.commands.cli import run
from appo.commands.components import REGISTRIES
from appo.commands.known_keys import check_keys
from appo.commands.renamed_keys import REMOVED_KEYS, RENAMED_KEYS
from appo.commands.sources import ClassName, options_of
from tests.small_run import CONFIG

COMMANDS = ["fit", "validate", "test", "predict", "plan", "pilot", "sft"]
COMPONENTS = [registry[name] for registry in REGISTRIES for name in registry]


def refusal(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        check_keys("fit", args)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "question"),
    [
        (
            "--rollout.branching.num_trajectory=4",
            "--rollout.branching.num_trajectory (did you mean '--rollout.branching.num_trajectories'?)",
        ),
        ("--rollout.scorer.halflife=1", "--rollout.scorer.halflife (did you mean '--rollout.scorer.half_life'?)"),
        ("--rolout.seed=4", "--rolout (did you mean '--rollout'?)"),
        ("--trainer.max_epoch=4", "--trainer.max_epoch (did you mean '--trainer.max_epochs'?)"),
        ("--model.sharding.cpu_ofload=true", "(did you mean '--model.sharding.cpu_offload'?)"),
        ("--model.max_grad_nrm=1", "(did you mean '--model.max_grad_norm'?)"),
        ("--data.grading.words=1", "no option is named --data.grading\n"),
    ],
)
def test_an_unknown_option_gets_the_nearest(option, question, capsys):
    assert question in refusal(capsys, option)


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_option_that_was_renamed_is_told_its_new_name_which_exists(old, new, capsys):
    assert f"--{old} is named --{new} now" in refusal(capsys, f"--{old}=1")
    if new != "rollout.limits":  # a section
        check_keys("fit", [f"--{new}=1"])


@pytest.mark.parametrize(("name", "reason"), REMOVED_KEYS.items())
def test_an_option_that_is_gone_says_why(name, reason, capsys):
    assert f"--{name} is gone: {reason}" in refusal(capsys, f"--{name}=1")


def test_a_component_of_the_users_own_may_have_an_option_that_is_gone_elsewhere():
    check_keys("fit", ["--rollout.scorer=my_module.Mine", "--rollout.scorer.discount=0.5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rollout:\n  sampling: {temperature: 1, top_p: 0.9}\n",
            ":2: rollout.sampling.top_p is gone: training samples from the whole distribution, ",
        ),
        (
            "rollout:\n  branching:\n    num_trajectory: 4\n",
            ":3: no key is named rollout.branching.num_trajectory (did you mean 'rollout.branching.num_trajectories'?)",
        ),
        (
            "rollout:\n  seed: 1\n  num_initial: 4\n",
            ":3: rollout.num_initial is named rollout.branching.num_roots now",
        ),
        ("rollout:\n  tool_rules:\n    at_limit: refuse\n", ":2: rollout.tool_rules is named rollout.limits now"),
        (
            "rollout:\n  tools:\n  - PythonTool\n  - class_path: SearchTool\n    init_args:\n      backnd: X\n",
            ":6: no key is named rollout.tools.backnd (did you mean 'rollout.tools.backend'?)",
        ),
        ("rollout: [\n", ":2: config must be YAML: expected the node content"),
    ],
)
def test_an_unknown_key_of_a_file_gets_its_line_and_the_nearest(text, message, tmp_path, capsys):
    path = tmp_path / "overlay.yaml"
    path.write_text(text)
    assert refusal(capsys, f"--config={path}").startswith(f"error: {path}{message}")


def test_a_missing_file_is_named(capsys):
    assert refusal(capsys, "--config", "no.yaml") == "error: config must name a file, got 'no.yaml'\n"


def test_options_of_foreign_classes_and_files_are_left_to_the_parser(tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("rollout:\n  scorer:\n    class_path: mine.Scorer\n    init_args: {own: 1}\n")
    check_keys("fit", ["--config", str(path), "--rollout.scorer.own=2"])
    check_keys("fit", ["--rollout.reward", "mine.Reward", "--rollout.reward.own=2", "--model", "model.yaml"])
    check_keys("fit", ["--rollout.reward.options.own=2", "--rollout.scorer.help=Entropy", "--model.optimizer.lr=1"])


@pytest.mark.parametrize("command", COMMANDS)
def test_all_options_that_help_lists_are_known(command, capsys):
    with pytest.raises(SystemExit):
        run([command, "--help"])
    listed = re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, re.MULTILINE)
    assert "--trainer.max_epochs" in listed
    assert "--data.tokenizer" not in listed
    for option in set(listed) - {"--config"}:
        check_keys(command, [option])


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda cls: cls.__name__)
def test_the_options_of_a_component_are_read_off_its_source(component):
    options = options_of([ClassName(component.__module__, component.__name__)])
    assert options is not None
    assert options.keys() == inspect.signature(component).parameters.keys()


def test_a_misspelled_key_is_told_before_anything_large_is_imported():
    script = (
        "import sys\n"
        "from appo.__main__ import main\n"
        f"sys.argv = ['appo', 'fit', '--config', {CONFIG!r}, '--rollout.scorer.halflife=1']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, {'torch', 'lightning', 'transformers'} & set(sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "2 set()\n"
    assert "did you mean '--rollout.scorer.half_life'?" in result.stderr


def test_all_configs_have_known_keys_alone():
    for path in Path(CONFIG).parent.glob("**/*.yaml"):
        check_keys("sft" if path.stem.endswith("sft") else "fit", [f"--config={path}"])
