"""Real runs of `appo bench` through the command line, of a tiny policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from appo.commands import cli
from appo.core.trajectory import RewardResult, Trajectory
from appo.monitoring.trajectory_files import read_trajectories
from appo.rewards import RewardError
from tests.small_run import CONFIG, EvenTokens

ROWS = {
    "gsm8k": [{"question": f"{i} + 2 = ?", "answer": f"So it is\n#### {i + 2}"} for i in range(6)],
    "bamboogle": [{"question": f"Who is {i}?", "answer": [f"number {i}"]} for i in range(3)],
    "gaia": [{"Question": f"Secret {i}?", "answer": f"hidden {i}"} for i in range(2)],
}
PRESETS = Path(CONFIG).parent / "benchmarks"
FEW = (
    "--data.max_prompt_tokens=160",
    "--rollout.limits.max_response_tokens=16",
    "--rollout.syntax.instructions=null",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
)


@dataclass(frozen=True)
class Breaks(EvenTokens):
    """The share of even ids; raises once so many trajectories were rewarded."""

    num_left: ClassVar[int] = 10**6
    asked: ClassVar[list[str]] = []

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        if trajectory.prompt.source == "gsm8k":
            Breaks.asked.append(trajectory.prompt.id)
        Breaks.num_left -= 1
        if Breaks.num_left < 0:
            raise OSError("the machine has gone")
        return super().__call__(trajectory)


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def bench(tmp_path, files, policy_folder):
    def start(suite: str, *options: str) -> Path:
        paths = (f"--model.policy={policy_folder}", f"--data.source.folder={files}", f"--out={tmp_path / 'out'}")
        cli.run(["bench", "--config", CONFIG, f"--suite={suite}", *paths, *FEW, *options])
        return tmp_path / "out"

    return start


def answers(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / name / "answers.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_each_benchmark_is_measured_as_a_test_of_its_own_measures_it(tmp_path, files, policy_folder, bench, capsys):
    out = bench("gsm8k,bamboogle")
    assert capsys.readouterr().out.strip().endswith(str(out / "bench.md"))
    found = json.loads((out / "bench.json").read_text())["benchmarks"]
    assert list(found) == ["gsm8k", "bamboogle"]
    configs = ("--config", CONFIG, "--config", str(PRESETS / "gsm8k.yaml"))
    paths = (f"--data.source.folder={files}", f"--trainer.default_root_dir={tmp_path / 'test'}")
    cli.run(["test", *configs, f"--model.policy={policy_folder}", *paths, *FEW])
    alone = json.loads((tmp_path / "test/test.json").read_text())
    assert found["gsm8k"] == pytest.approx({name.removeprefix("test/"): value for name, value in alone.items()})
    files_of_both = [folder / "trajectories/test_00000.jsonl.zst" for folder in (out / "gsm8k", tmp_path / "test")]
    responses = [
        {record["prompt"]["id"]: record["token_ids"] for record in read_trajectories(path)} for path in files_of_both
    ]
    assert responses[0] == responses[1]
    page = (out / "bench.md").read_text()
    assert "| GSM8K | 6 | 1 |" in page
    assert "| Qwen2.5-7B | APPO, reported |" in page


@pytest.mark.slow
def test_a_run_that_was_cut_off_asks_nothing_twice_that_it_has(tmp_path, bench):
    options = ("--rollout.reward=tests.commands.bench.test_command.Breaks", "--rollout.evaluation.samples=2",
               "--rollout.evaluation.temperature=1.0", "--at-once=1")  # fmt: skip
    Breaks.num_left, Breaks.asked = 5, []
    with pytest.raises(RewardError):
        bench("gsm8k,bamboogle", *options)
    out = tmp_path / "out"
    before = [record["id"] for record in answers(out, "gsm8k")]
    assert 1 <= len(before) <= 2
    # A kill may leave half of what was about to be written.
    with (out / "gsm8k/answers.jsonl").open("a") as file:
        file.write('{"id": "ha')
    with (out / "gsm8k/trajectories/test_00000.jsonl.zst").open("ab") as file:
        file.write(b"\x28\xb5half a frame")
    Breaks.num_left, Breaks.asked = 10**6, []
    bench("gsm8k,bamboogle", *options)
    after = [record["id"] for record in answers(out, "gsm8k")]
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == 6
    assert not set(before) & set(Breaks.asked)
    records = list(read_trajectories(out / "gsm8k/trajectories/test_00000.jsonl.zst"))
    assert [record["id"] for record in records] == list(range(12))
    assert [record["prompt"]["id"] for record in records][::2] == after
    Breaks.num_left, Breaks.asked = 0, []
    bench("gsm8k,bamboogle", *options)
    assert Breaks.asked == []


@pytest.mark.slow
def test_what_must_not_spread_is_nowhere(bench):
    out = bench("gaia", "--rollout.evaluation.samples=3")
    for path in out.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".yaml"):
            assert not any(word in path.read_text() for word in ("Secret", "hidden")), path
    records = list(read_trajectories(out / "gaia/trajectories/test_00000.jsonl.zst"))
    assert len(records) == 6
    assert {record["text"] for record in records} == {None}
    assert [len(record["accuracies"]) for record in answers(out, "gaia")] == [3, 3]


@pytest.mark.slow
def test_other_questions_or_options_are_refused(tmp_path, files, bench, capsys):
    out = bench("bamboogle")
    panel = tmp_path / "panel.json"
    panel.write_text((out / "panel.json").read_text())
    with pytest.raises(SystemExit):
        bench("bamboogle", "--rollout.evaluation.temperature=0.5")
    assert "rollout.evaluation.temperature is 0.0 there, 0.5 here" in capsys.readouterr().err
    (files / "bamboogle.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["bamboogle"][::-1]))
    for options, said in (((), "questions is "), ((f"--panel={panel}", f"--out={tmp_path / 'other'}"), "order was ")):
        with pytest.raises(SystemExit):
            bench("bamboogle", *options)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("gsm8k,aime25,hle", "got aime25, hle without; folder must hold the benchmark aime25"),
        ("gsm9k", "got 'gsm9k' (did you mean 'gsm8k'?)"),
        ("", "suite must name a benchmark"),
    ],
)
def test_a_suite_that_cannot_be_asked_is_refused_at_once(tmp_path, bench, capsys, suite, said):
    with pytest.raises(SystemExit):
        bench(suite)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
