"""The paper's runs from files to table, as `make rehearsal` makes them, with fewer questions and without vLLM."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from appo.commands.bench.suites import SUITES
from appo.commands.cli import run
from benchmarks.rehearsal import write_all

RUN = ("--config=recipe:paper/qwen2.5_7b", "--config=recipe:paper/appo", "--config=recipe:paper/rehearsal")
SMALL = (
    "--rollout.engine=HFEngine",
    "--rollout.limits.max_response_tokens=32",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)


@pytest.mark.slow
def test_from_files_to_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path, 2, None)
    start = ("--config=recipe:paper/sft", "--config=recipe:paper/rehearsal_sft")
    run(["sft", *start, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    run(["fit", *RUN, *SMALL, "--trainer.default_root_dir=rl"])
    for folder in ("sft", "rl"):
        (left_out,) = Path(folder, "contaminated_rows.jsonl").read_text().splitlines()
        assert json.loads(left_out)["benchmark"] == "aime24"
    with next(Path("rl/csv").glob("version_*/metrics.csv")).open() as file:
        assert [row["rollout/branches_made"] for row in csv.DictReader(file) if row["rollout/reward_mean"]] == ["48.0"]
    run(
        [
            "bench",
            *RUN,
            *SMALL,
            "--model.policy=rl/policy",
            "--suite=paper",
            "--out=bench",
            "--rollout.evaluation.samples=1",
        ]
    )
    assert json.loads(Path("bench/bench.json").read_text())["benchmarks"].keys() == set(SUITES["paper"])
    run(["report", "--run=rl"])
    run(["export", "--ckpt=rl/checkpoints/last.ckpt", "--out=export"])
    trained, exported = (load_file(Path(folder, "model.safetensors")) for folder in ("rl/policy", "export"))
    assert trained.keys() == exported.keys()
