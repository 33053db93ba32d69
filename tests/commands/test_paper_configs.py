"""The configs of the paper's runs, and what `docs/paper.md` says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from appo.commands.bench.suites import SUITES
from appo.commands.cli import run

ROOT = Path(__file__).parents[2]
SHAPES = {
    "qwen2.5_7b": "Qwen2.5-7B",
    "llama3.1_8b": "Llama-3.1-8B",
    "qwen3_8b_search": "Qwen3-8B",
    "qwen3_14b_search": "Qwen3-14B",
}
METHODS = ["appo", "appo_released", "grpo", "arpo", "recommended"]
REHEARSAL = ["rehearsal", "rehearsal_sft"]
PAGE = (ROOT / "docs/paper.md").read_text()


def config(name: str) -> dict:
    return yaml.safe_load((ROOT / f"configs/paper/{name}.yaml").read_text())


def test_there_is_a_config_of_every_model_and_method():
    names = {path.stem for path in (ROOT / "configs/paper").glob("*.yaml")}
    assert names == {*SHAPES, *METHODS, "sft", *REHEARSAL}


@pytest.mark.parametrize(
    ("model", "method"),
    [*((model, "appo") for model in SHAPES), *(("qwen2.5_7b", method) for method in METHODS[1:])],
)
def test_a_run_of_the_paper_is_planned_and_fits_as_the_page_says(model, method, capsys):
    run(
        [
            "plan",
            *("--config", f"recipe:paper/{model}"),
            *("--config", f"recipe:paper/{method}"),
            f"--shape={SHAPES[model]}",
        ]
    )
    needed, usable = re.search(r"^fits: ([\d.]+) of ([\d.]+) GiB", capsys.readouterr().out, re.MULTILINE).groups()
    if method == "appo":
        assert re.search(rf"^\| `{re.escape(model)}` \|.*\| {needed} of {usable} \|", PAGE, re.MULTILINE)


def test_what_the_paper_states_is_what_the_configs_have():
    for model in SHAPES:
        base = config(model)
        is_search = model.endswith("search")
        assert base["data"]["prompts_per_iteration"] == 128
        assert base["data"]["prompts_per_minibatch"] == 16
        assert base["rollout"]["limits"]["max_response_tokens"] == (8192 if is_search else 4096)
        # Epochs of 10,000 questions, or of 1,071, 128 an iteration.
        assert base["trainer"]["max_epochs"] == (5 * (1_071 // 128) if is_search else 2 * (10_000 // 128))
        assert base["trainer"]["devices"] * base["trainer"].get("num_nodes", 1) == (16 if "14b" in model else 8)
    branching = config("appo")["rollout"]["branching"]
    assert (branching["num_roots"], branching["num_trajectories"]) == (4, 4 * (1 + 3))
    start = config("sft")
    assert (start["model"]["lr"], start["model"]["weight_decay"], start["trainer"]["max_epochs"]) == (7e-6, 0.1, 3)
    trainer = start["trainer"]
    assert start["data"]["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == 128


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_budget_of_the_paper(method):
    assert config(method)["rollout"]["branching"]["num_trajectories"] == 16


@pytest.mark.parametrize("name", [*SHAPES, "sft"])
def test_nothing_of_the_suite_is_trained_on(name):
    data = config(name)["data"]
    assert data["contaminated_rows"] == "remove"
    compared = [source["init_args"]["name"] for source in data["contamination_sources"]]
    assert sorted(compared) == sorted(SUITES["paper"])


def unmarked(text: str) -> list[str]:
    """The lines with a value that no comment says the source of: on the line, or above it or what it stands in."""
    says = re.compile(r"#.*\b(paper|release|ours|ARPO)\b", re.IGNORECASE)
    found, comment, covered = [], "", None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("#"):
            comment += line
            continue
        if covered is not None and indent <= covered:
            covered = None
        if covered is None and says.search(comment):
            covered = indent
        is_value = re.match(r"\s*(- \S|(- )?[\w.]+: *[^\s#])", line)
        if is_value and covered is None and not says.search(line):
            found.append(line)
        comment = ""
    return found


@pytest.mark.parametrize("name", [*SHAPES, *METHODS, "sft"])
def test_every_value_says_where_it_is_from(name):
    lines = (ROOT / f"configs/paper/{name}.yaml").read_text().splitlines(keepends=True)
    # What a file says of itself at its head is about no value.
    head = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert unmarked("".join(lines[head:])) == []


def test_a_value_without_a_source_is_found():
    text = "a: 1  # ours\n# Paper: both.\nb:\n  c: 2\n  d: [3]\ne:\n  f: 4\n# Faster.\ng:\n  - h: 5\n"
    assert unmarked(text) == ["  f: 4", "  - h: 5"]
