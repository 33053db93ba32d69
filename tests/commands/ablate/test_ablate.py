"""A real ablation through the command line: stopped in the middle, gone on with, and with a combination that fails."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from appo.__main__ import main
from appo.commands import cli
from appo.commands.ablate import command
from appo.commands.ablate.processes import Children, alone_in
from appo.monitoring.history import read_history
from tests import copied_processes
from tests.copied_processes import Finished
from tests.small_run import CONFIG, SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


class Ablation:
    """Overlays `a`, `b` and `fails`; `a` interrupts the ablation once, in its second iteration."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.marker = folder / "was_stopped"
        self.policy = policy
        overlays = {
            "a": {
                "rollout": {
                    "scorer": {"class_path": "RandomPosition"},
                    "reward": {
                        "class_path": "tests.commands.ablate.rewards.StopsOnce",
                        "init_args": {"marker": str(self.marker)},
                    },
                }
            },
            "b": {"rollout": {"scorer": {"class_path": "Entropy"}}},
            # The parser cannot know how long the sequences of a policy may be.
            "fails": {"rollout": {"limits": {"max_response_tokens": 9999}}},
        }
        for name, overlay in overlays.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
        self.options = [*SMALL, f"--model.policy={policy}", "--rollout.reward=tests.small_run.EvenTokens"]
        self.overlays = [str(folder / f"{name}.yaml") for name in overlays]
        self.out = folder / "out"

    def args(self, *args: str) -> list[str]:
        return [
            "ablate", "--config", CONFIG, *self.options, "--vary", f"config={','.join(self.overlays)}", "--seeds=0,1",
            "--tokens=1200", "--match=none", f"--out={self.out}", *args,
        ]  # fmt: skip

    @property
    def tested(self) -> Path:
        """Folder of the run that is the first: the test of a policy before its training."""
        return self.out / "before/config=a/seed_0"

    def folder(self, name: str, seed: int) -> Path:
        return self.out / f"runs/config={name}/seed_{seed}"


class Copies(Children):
    """Starts the same commands in less time."""

    def run(self, args: Sequence[str], log: Path) -> int:
        done = copied_processes.run(main, args, {})
        with log.open("a") as output:
            output.write(f"$ appo {' '.join(args)}\n{done.output}")
        return done.returncode


@pytest.fixture(scope="module")
def ablation(tmp_path_factory, policy_folder) -> Ablation:
    return Ablation(tmp_path_factory.mktemp("ablation"), policy_folder)


@pytest.fixture(scope="module")
def stopped(ablation) -> tuple[subprocess.CompletedProcess[str], str]:
    """The first call, and the log of the run that had ended before it was stopped."""
    appo = [sys.executable, "-m", "appo", *ablation.args()]
    done = subprocess.run(appo, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return done, (ablation.tested / "log.txt").read_text()


@pytest.fixture(scope="module")
def ended(ablation, stopped) -> Finished:
    """The second call, two runs at a time, which are copies of a process that has read the libraries."""
    output = io.StringIO()
    logger, handler = logging.getLogger("appo"), logging.StreamHandler(output)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(output), redirect_stdout(output):
        patch.setattr(command, "Children", Copies)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(ablation.args("--jobs=2"))
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    return Finished(exit_info.value.code, output.getvalue())


def rows(ablation: Ablation) -> list[dict[str, str]]:
    with (ablation.out / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_interrupted_ablation_stops_its_run_and_keeps_what_it_has(ablation, stopped):
    call, _ = stopped
    assert call.returncode == 130
    assert "the same command goes on from here" in call.stderr
    assert (ablation.tested / "test/test.json").exists()
    assert not (ablation.folder("a", 0) / "finished.json").exists()
    assert (ablation.folder("a", 0) / "checkpoints/last.ckpt").exists()
    assert not ablation.folder("b", 0).exists()
    # The lock goes to whoever asks: no process of the ablation is left.
    with alone_in(ablation.out):
        pass


def test_a_finished_run_is_not_done_again(ablation, stopped, ended):
    _, log = stopped
    assert (ablation.tested / "log.txt").read_text() == log


def test_an_interrupted_run_ends_as_if_nothing_had_been(ablation, stopped, ended, tmp_path):
    folder = ablation.folder("a", 0)
    assert "config=a, seed 0: trains on from its last checkpoint" in ended.output
    assert "--ckpt_path=last" in (folder / "log.txt").read_text()
    history = read_history(folder)
    assert [row["epoch"] for row in history] == list(range(len(history)))
    cli.run(
        [
            "fit", "--config", CONFIG, *ablation.options, "--config", ablation.overlays[0],
            "--rollout.stop_after_tokens=1200", "--trainer.max_epochs=50",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )  # fmt: skip
    expected = read_history(tmp_path)
    for name in ("rollout/generated_tokens_total", "rollout/accuracy"):
        assert [row[name] for row in history] == [row[name] for row in expected], name
    assert history[-2]["rollout/generated_tokens_total"] < 1200 <= history[-1]["rollout/generated_tokens_total"]
    trained = weights(folder / "policy")
    for name, tensor in weights(tmp_path / "policy").items():
        torch.testing.assert_close(trained[name], tensor, msg=name)


def test_a_failing_combination_is_reported_and_the_others_go_on(ablation, ended):
    assert ended.returncode == 1
    assert ended.output.count("has FAILED: appo fit ended with status 2") == 2
    assert "must not exceed the 512 positions of model.policy, got 64 + 9999" in ended.output
    assert "2 of 8 runs have failed: config=fails, seed 0; config=fails, seed 1" in ended.output
    page = (ablation.out / "ablation.md").read_text()
    assert "- config=fails, seed 0: appo fit ended with status 2" in page
    assert "| config=fails |" not in page


def test_one_row_of_the_csv_is_one_finished_run(ablation, ended):
    found = rows(ablation)
    assert [(row["combination"], row["seed"]) for row in found] == [
        ("before training", "0"), ("before training", "1"),
        ("config=a", "0"), ("config=b", "0"), ("config=a", "1"), ("config=b", "1"),
    ]  # fmt: skip
    for row in found[2:]:
        folder = ablation.folder(row["combination"].removeprefix("config="), int(row["seed"]))
        test = json.loads((folder / "test/test.json").read_text())
        assert {name: float(row[name]) for name in test} == test
        last = read_history(folder)[-1]
        assert int(row["tokens"]) == last["rollout/generated_tokens_total"] >= 1200
        assert float(row["rollout/accuracy"]) == last["rollout/accuracy"]


def test_the_table_holds_means_and_paired_differences(ablation, ended):
    values = {(row["combination"], row["seed"]): float(row["test/accuracy"]) for row in rows(ablation)}
    a, b = ([values[f"config={name}", seed] for seed in "01"] for name in "ab")
    differences = [y - x for x, y in zip(a, b, strict=True)]
    page = (ablation.out / "ablation.md").read_text()
    mean_a, mean_b, mean_difference = (sum(both) / 2 for both in (a, b, differences))
    assert f"| config=a | 2 | {mean_a:.3f} ({a[0]:.3f}, {a[1]:.3f}) | — |" in page
    assert (
        f"| config=b | 2 | {mean_b:.3f} ({b[0]:.3f}, {b[1]:.3f}) | "
        f"{mean_difference:+.3f} ({differences[0]:+.3f}, {differences[1]:+.3f}) | — | — | no verdict |"
    ) in page


def test_the_policy_before_training_is_tested_as_what_came_of_it(ablation, ended):
    own = [row for row in rows(ablation) if row["combination"] == "before training"]
    for row in own:
        folder = ablation.out / f"before/config=a/seed_{row['seed']}"
        test = json.loads((folder / "test/test.json").read_text())
        assert {name: float(row[name]) for name in test} == test
        assert f"--model.policy={ablation.policy}" in (folder / "log.txt").read_text()
        assert (row["tokens"], row["iterations"]) == ("", "0")


def test_the_page_says_what_runs_took(ablation, ended):
    page = (ablation.out / "ablation.md").read_text()
    for name in "ab":
        own = [row for row in rows(ablation) if row["combination"] == f"config={name}"]
        tokens, steps, trained, calls = (
            sum(float(row[key]) for row in own) / 2 for key in ("tokens", "steps", "trained_tokens", "tool_calls")
        )
        assert f"| config={name} | 2 | {tokens:,.0f} | {steps:,.1f} | " in page
        assert trained > tokens > 0
        assert f" | {trained:,.0f} | " in page
        # Two mini-batches an iteration.
        assert [int(row["steps"]) for row in own] == [2 * int(row["iterations"]) for row in own]
        assert f" s | {calls:,.0f} |" in page
    assert f"- All seeds start from one policy, `{ablation.policy}`" in page


def test_every_policy_is_tested_under_the_options_of_the_first_combination(ablation, ended):
    found = [
        json.loads((ablation.folder(name, 0) / "test/specification.json").read_text())["rollout.reward.class_path"]
        for name in "ab"
    ]
    assert found == ["tests.commands.ablate.rewards.StopsOnce"] * 2


def test_the_curves_are_drawn_with_the_names_of_the_combinations(ablation, ended):
    assert matplotlib.image.imread(ablation.out / "curves.png").shape[1] > 800
    texts = {"".join(element.itertext()) for element in ElementTree.parse(ablation.out / "curves.svg").iter()}
    assert {"config=a", "config=b", "generated tokens", "rollout reward initial mean (moving average)"} <= texts
    assert "config=fails" not in texts


def test_a_folder_of_another_specification_is_refused(ablation, ended, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.run(ablation.args("--rollout.limits.max_tool_calls=2"))
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert "config=a/seed_0 with another one: rollout.limits.max_tool_calls is 6 there, 2 here" in message


def test_a_folder_is_used_by_one_ablation_at_a_time(ablation, ended, capsys):
    with alone_in(ablation.out), pytest.raises(SystemExit) as exit_info:
        cli.run(ablation.args())
    assert exit_info.value.code == 2
    assert "out must not be in use" in capsys.readouterr().err


def test_a_metric_that_no_run_has_is_named_with_those_there_are(ablation, ended, tmp_path, caplog):
    # In another place, which is all the same to finished runs.
    out = shutil.copytree(ablation.out, tmp_path / "copy")
    with pytest.raises(SystemExit) as exit_info:
        cli.run(
            [
                "ablate", "--config", CONFIG, *ablation.options, f"--out={out}",
                f"--vary=config={ablation.overlays[0]}", "--seeds=0", "--tokens=1200", "--metric=test/acuracy",
            ]
        )  # fmt: skip
    assert exit_info.value.code == 1
    assert "metric must be one that it has, got 'test/acuracy'; there are: test/accuracy, " in caplog.text
    assert "is tested" not in caplog.text
