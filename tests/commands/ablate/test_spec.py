from __future__ import annotations

import string
from pathlib import Path

import pytest

from appo.commands.ablate.options import read_spec, split_values
from appo.commands.ablate.spec import AblationSpec

REQUIRED = ["--seeds", "0,1", "--tokens", "100", "--out", "out"]


def spec(*args: str) -> AblationSpec:
    return read_spec([*args, *REQUIRED])


def names(*args: str) -> list[str]:
    return [combination.name for combination in spec(*args).combinations]


def test_several_keys_are_combined_with_one_another():
    assert names("--vary", "rollout.scorer=A,B", "--vary", "model.loss.clip_low=0.1,0.2") == [
        "scorer=A,clip_low=0.1", "scorer=A,clip_low=0.2", "scorer=B,clip_low=0.1", "scorer=B,clip_low=0.2",
    ]  # fmt: skip


def test_a_combination_is_a_command_line_of_fit(tmp_path):
    overlay = tmp_path / "grpo.yaml"
    overlay.touch()
    first, second = spec(
        "--config", "base.yaml", "--model.policy", "here", "--vary", f"config=null,{overlay}",
        "--vary", "rollout.scorer=A",
    ).combinations  # fmt: skip
    assert first.args == ("--config=base.yaml", "--model.policy", "here", "--rollout.scorer=A")
    assert second.args == (
        "--config=base.yaml", "--model.policy", "here", f"--config={overlay}", "--rollout.scorer=A",
    )  # fmt: skip
    assert [first.name, second.name] == ["config=base,scorer=A", "config=grpo,scorer=A"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A,B", ["A", "B"]),
        ("0.1, 2,null,true", [0.1, 2, None, True]),
        ("[A, B]", ["A", "B"]),
        ("['a,b', c]", ["a,b", "c"]),
        ("[[1, 2], [3]]", [[1, 2], [3]]),
        ("[1,2],[3]", [[1, 2], [3]]),
        ("{class_path: A, init_args: {x: 1}},B", [{"class_path": "A", "init_args": {"x": 1}}, "B"]),
    ],
)
def test_values_are_separated_by_commas_or_a_yaml_list(text, values):
    assert split_values(text) == values


def test_a_value_reaches_the_parser_as_it_was_meant():
    (a, b, c) = spec("--vary", "rollout.scorer=[{class_path: A, init_args: {x: 1}}, 'B,C', null]").combinations
    assert a.args == ('--rollout.scorer={"class_path": "A", "init_args": {"x": 1}}',)
    assert b.args == ("--rollout.scorer=B,C",)
    assert c.args == ("--rollout.scorer=null",)


def test_names_are_readable_and_safe():
    values = "[{class_path: my.plugin.Score, init_args: {x: 1}}, 'a/b ../c', '$HOME', '']"
    found = names("--vary", f"rollout.scorer={values}")
    assert found == ["scorer=Score-x=1", "scorer=a-b-..-c", "scorer=HOME", "scorer=empty"]
    assert set("".join(found)) <= set(string.ascii_letters + string.digits + "._=-,")


def test_names_that_a_file_system_may_confuse_are_told_apart():
    found = names("--vary", "model.policy=a/b,a-b,A-b,c")
    assert len({name.lower() for name in found}) == 4
    assert found[3] == "policy=c"
    assert all(name.lower().startswith("policy=a-b-") for name in found[:3])


def test_long_names_are_cut_and_stay_distinct():
    found = names("--vary", f"model.policy={'x' * 300}a,{'x' * 300}b")
    assert len(set(found)) == 2
    assert max(map(len, found)) <= 120


def test_keys_are_as_long_as_it_takes_to_tell_them_apart():
    assert names("--vary", "rollout.engine.dtype=a", "--vary", "model.dtype=b", "--vary", "model.loss.kl=c") == [
        "engine.dtype=a,model.dtype=b,kl=c"
    ]


FILE = """
config: [base.yaml]
vary:
  rollout.scorer: [A, {class_path: B, init_args: {x: 1}}]
  model.loss.clip_low: 0.1,0.2
seeds: [0, 1, 2]
tokens: 1000
out: runs/there
metric: rollout/accuracy
match: none
options: {model.policy: here, rollout.branching.num_roots: 4}
"""


def test_a_file_says_the_same_as_a_command_line(tmp_path):
    path = tmp_path / "ablation.yaml"
    path.write_text(FILE)
    written = read_spec(["--spec", str(path)])
    typed = read_spec(
        [
            "--config=base.yaml", "--vary=rollout.scorer=A,{class_path: B, init_args: {x: 1}}",
            "--vary=model.loss.clip_low=0.1,0.2", "--seeds=0,1,2", "--tokens=1000", "--out=runs/there",
            "--metric=rollout/accuracy", "--match=none", "--model.policy=here", "--rollout.branching.num_roots=4",
        ]
    )  # fmt: skip
    assert written == typed


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "ablation.yaml"
    path.write_text(FILE)
    both = read_spec(
        [
            "--vary", "rollout.scorer=C", "--seeds", "7", "--spec", str(path), "--out", "here",
            "--config", "other.yaml", "--model.policy=mine", "--jobs=2",
        ]
    )  # fmt: skip
    assert both.vary == {"rollout.scorer": ("C",), "model.loss.clip_low": (0.1, 0.2)}
    assert (both.seeds, both.tokens, both.out, both.jobs) == ((7,), 1000, Path("here"), 2)
    assert both.config == ("other.yaml",)
    # The parser of `appo fit` takes the last word.
    assert both.options == ("--model.policy=here", "--rollout.branching.num_roots=4", "--model.policy=mine")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "vary must name at least one option"),
        (("--vary", "rollout.scorer"), "vary must have the form KEY=VALUE,VALUE, got 'rollout.scorer'"),
        (("--vary", "rollout.scorer="), "vary must give rollout.scorer at least one value"),
        (("--vary", "rollout.scorer=A,B,A"), 'values of rollout.scorer in vary must differ, got "A" 2 times'),
        (("--vary", "a=1", "--vary", "a=2"), "vary must name each option once, got a twice"),
        (("--vary", "a={b"), "values must be separated by commas or be a YAML list, got '{b'"),
        (("--vary", "trainer.max_epochs=1,2"), "vary must not name trainer.max_epochs, .* its option 'tokens'"),
        (("--vary", "config=/nowhere.yaml"), "config in vary must name files, got '/nowhere.yaml'"),
        (("--vary", "a=1", "--rollout.seed=3"), "rollout.seed must be left to the ablation, whose option 'seeds'"),
        (("--vary", "a=1", "--jobs", "0"), "jobs must be a positive whole number, got 0"),
        (("--vary", "a=1", "--metric", "accuracy"), "metric must begin with one of test/"),
        (("--vary", "a=1", "--curve", "test/accuracy"), "curve must begin with one of validation/"),
        (("--vary", "a=1", "--evaluate_with", "all"), "evaluate_with must be 'first' or 'own', got 'all'"),
        (("--vary", "a=1", "--match", "steps"), "match must be 'tokens_per_step' or 'none', got 'steps'"),
        (
            ("--vary", "data.prompts_per_minibatch=8,16"),
            "match must be none where data.prompts_per_minibatch is varied, which tokens_per_step sets",
        ),
        (("--vary", "a=1", "--spec", "/nowhere.yaml"), "spec must name a file, got '/nowhere.yaml'"),
    ],
)
def test_bad_input_is_named(args, message):
    with pytest.raises(ValueError, match=message):
        spec(*args)


def test_prompts_may_be_varied_where_they_are_left_alone():
    assert names("--vary", "data.prompts_per_iteration=8,16", "--match", "none") == [
        "prompts_per_iteration=8", "prompts_per_iteration=16",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seeds", "[]", "seeds must name at least one seed"),
        ("--seeds", "0,0", "seeds must differ, got 0 2 times"),
        ("--seeds", "a", "seeds must be whole numbers from 0, got 'a'"),
        ("--seeds", "-1", "seeds must be whole numbers from 0, got -1"),
        ("--tokens", "0", "tokens must be a positive whole number, got 0"),
        ("--tokens", "many", "tokens must be a positive whole number, got 'many'"),
    ],
)
def test_bad_numbers_are_named(option, value, message):
    with pytest.raises(ValueError, match=message):
        read_spec([*REQUIRED, "--vary", "a=1", f"{option}={value}"])


@pytest.mark.parametrize("option", ["--seeds", "--tokens", "--out"])
def test_what_is_missing_is_named(option):
    at = REQUIRED.index(option)
    with pytest.raises(ValueError, match=f"{option[2:]} must be given: {option} on the command line"):
        read_spec(["--vary", "a=1", *REQUIRED[:at], *REQUIRED[at + 2 :]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "spec must hold keys and values"),
        ("a: [", "spec must be a YAML file"),
        ("seed: 3", "keys of .* must be among config, vary, .*, got 'seed'"),
        ("vary: [a]", "vary in .* must hold options and values"),
        ("seeds: 3", "seeds must be a list such as 0,1,2, got 3"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "ablation.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spec(
            ["--spec", str(path), "--vary", "a=1", "--tokens=1", "--out=x", *(() if "seed" in text else ["--seeds=0"])]
        )
