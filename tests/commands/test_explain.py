"""What an option is, said without loading what it configures; and what a shell may complete."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from appo.__main__ import COMMANDS
from appo.commands.completion import completion, main
from appo.commands.explain import explain
from appo.commands.keys import argument_help, components_of, keys_of


def rows(text):
    """Of one option, what stands behind each name."""
    _, *lines = text.splitlines()
    found, name = {}, ""
    for line in lines:
        name = line[:11].strip() or name
        found[name] = f"{found.get(name, '')} {line[11:].strip()}".strip()
    return found


def test_a_field_is_explained_with_what_recipes_make_of_it():
    found = rows(explain("rollout.branching.min_entropy"))
    assert found["of"] == "Branching (appo.rollouts.branching)"
    assert (found["type"], found["default"]) == ("float", "0.0")
    assert found["help"].startswith("Nats of entropy that a token must have had to be a branch point")
    assert "0.3 in forks" in found["recipes"]


def test_the_end_of_a_key_is_enough():
    assert explain("min_entropy").splitlines()[0] == "rollout.branching.min_entropy"
    assert explain("--rollout.branching.min_entropy") == explain("min_entropy")


def test_an_argument_is_explained_by_the_docstring_of_its_class():
    found = rows(explain("rollout.stop_after_tokens"))
    assert (found["type"], found["default"]) == ("int | None", "None")
    assert found["help"].startswith("ends the training once so many tokens were sampled for it.")
    assert found["help"].endswith("trains to the trainer's end.")
    assert found["recipes"] == "none sets it"
    assert rows(explain("trainer.max_epochs"))["help"].startswith("Stop training once this number of epochs")


def test_a_component_names_its_classes_and_their_options():
    found = rows(explain("rollout.scorer"))
    assert {"BranchingScore", "Entropy", "RandomPosition"} <= {*found["classes"].split(", ")}
    assert "half_life" in found["options"].split(", ")
    assert "Entropy in " in found["recipes"]
    assert rows(explain("rollout.scorer.init_args.half_life"))["of"].startswith("GainScorer")


def test_an_unknown_key_gets_the_nearest(capsys):
    with pytest.raises(SystemExit) as refused:
        explain("rollout.branching.min_entropi")
    assert refused.value.code == 2
    assert "did you mean '--rollout.branching.min_entropy'?" in capsys.readouterr().err


def test_arguments_are_told_from_the_lines_that_follow_them():
    text = "Does it.\n\nArgs:\n    a: first\n        and more.\n    ab: second: with a colon.\n\nReturns:\n    a: thing"
    assert argument_help(text, "a") == "first and more."
    assert argument_help(text, "ab") == "second: with a colon."
    assert argument_help(text, "b") == ""


def test_nothing_large_is_imported():
    code = (
        "import sys; from appo.commands.cli import run; run(['config', 'explain', 'rollout.scorer']); "
        "from appo.commands.completion import main; main(['bash'], []); "
        "large = {'torch', 'lightning', 'transformers', 'numpy'} & {*sys.modules}; "
        "sys.exit(f'imported {large}' if large else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_options_are_known():
    keys = set(keys_of("fit"))
    assert {"config", "model.loss.clip_low", "data.prompts_per_iteration", "trainer.max_epochs", "ckpt_path"} <= keys
    assert "rollout.reward.parts" in keys
    assert "GateQuestions" in components_of("fit")["data.source"]
    assert "rollout.scorer" not in set(keys_of("sft"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["appo", "rep"], {"repeat", "report"}),
        (["appo", "fit", "--rollout.branching.min_e"], {"--rollout.branching.min_entropy"}),
        (["appo", "fit", "--rollout.scorer", "Ent"], {"Entropy"}),
        (["appo", "fit", "--rollout.scorer", "=", "Ent"], {"Entropy"}),
        (["appo", "fit", "--config", "recipe", ":", "dr"], {"dr_grpo"}),
        (["appo", "report", "--be"], {"--before"}),
    ],
)
def test_bash_completes(script, words, expected):
    quoted = " ".join(f"'{word}'" for word in words)
    code = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _appo; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == expected


@pytest.fixture(scope="module")
def script():
    return completion("bash", list(COMMANDS))


def test_zsh_takes_the_script_of_bash(capsys, script):
    main(["zsh"], list(COMMANDS))
    first, *_, last = capsys.readouterr().out.strip().splitlines()
    assert first == "autoload -U +X compinit && compinit"
    assert last == script.strip().splitlines()[-1]
