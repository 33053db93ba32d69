"""The record of a run: what it names, what it leaves out, and a run that is started again by it."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from appo.commands.record.fingerprints import files_in, fingerprint
from appo.commands.record.record import RunRecord, differences
from appo.commands.record.repeat import compared, is_of_the_machine, repeat
from tests.small_run import metrics


@pytest.fixture
def record(small_run) -> RunRecord:
    return RunRecord.read(small_run / "csv/version_0/run.json")


def test_a_run_records_what_it_needs_to_be_repeated(small_run, policy_folder, record):
    assert (record.command, record.processes) == ("fit", 1)
    assert record.files["model.policy"] == fingerprint(policy_folder)
    assert record.config["seed_everything"] == 0
    assert record.config["data"]["prompts_per_iteration"] == 4
    assert {"torch", "lightning", "transformers"} <= record.environment["packages"].keys()
    assert record.environment["hardware"]["cores"] >= 1
    repository = str(Path(__file__).parents[3])
    if (Path(repository) / ".git").exists():
        assert len(record.environment["git"][repository]["commit"]) == 40
    assert stat.S_IMODE((small_run / "csv/version_0/run.json").stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_run_that_is_repeated_comes_out_the_same(small_run, tmp_path):
    assert repeat(small_run, tmp_path / "again").splitlines() == [
        "all metrics of 1 iterations are equal, times and memory aside",
        "the weights are equal to the bit",
    ]
    assert (tmp_path / "again/csv/version_0/run.json").is_file()


def test_a_difference_is_named(small_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(small_run, other)
    path = other / "csv/version_0/metrics.csv"
    (row,) = metrics(small_run)
    path.write_text(path.read_text().replace(row["rollout/reward_mean"], "0.123"))
    weights = other / "policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert f"iteration 0, rollout/reward_mean: {float(row['rollout/reward_mean'])} before, 0.123 now" in compared(
        small_run, other
    )
    assert compared(small_run, other)[-1] == "the weights are different"


def test_what_was_read_must_be_as_it_was(small_run, record, tmp_path):
    policy = tmp_path / "policy"
    shutil.copytree(record.config["model"]["policy"], policy)
    config = {**record.config, "model": {**record.config["model"], "policy": str(policy)}}
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    RunRecord.of("fit", 1, config).write(run / "csv/version_0/run.json")
    (policy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"of the run name must be as it was: .*model\.policy"):
        repeat(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_new_folder_must_be_new_and_the_old_one_a_run(small_run, tmp_path):
    with pytest.raises(FileExistsError, match="--out must be a new folder"):
        repeat(small_run, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"--run must be the folder of an appo fit.*no run\.json"):
        repeat(tmp_path, tmp_path / "again")
    (tmp_path / "run.json").write_text(json.dumps({"command": "fit"}))
    with pytest.raises(ValueError, match="must be the record of a run"):
        repeat(tmp_path, tmp_path / "again")


def test_a_fingerprint_tells_names_sizes_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr("appo.commands.record.fingerprints._WHOLE", 100)
    monkeypatch.setattr("appo.commands.record.fingerprints._SAMPLE", 10)
    monkeypatch.setattr("appo.commands.record.fingerprints._SAMPLES", 3)
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "small").write_bytes(b"a" * 50)
    (folder / "inner/large").write_bytes(b"b" * 200)
    found = {fingerprint(folder)}

    def changed(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        known = len(found)
        found.add(fingerprint(folder))
        assert len(found) == known + 1, name

    changed("small", b"a" * 49 + b"c")
    changed("new", b"")
    changed("inner/large", b"b" * 199 + b"c")  # the end
    changed("inner/large", b"b" * 201)  # the size
    changed("inner/large", b"b" * 95 + b"c" * 20 + b"b" * 86)  # the middle
    assert fingerprint(folder / "small") != fingerprint(folder / "new")


def test_only_what_can_be_a_file_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "rows.jsonl"):
        (tmp_path / name).touch()
    config = {"a": ["train", "rows.jsonl", "./train", "x" * 5000 + "/", "a/\0", 3, None], "b": {"c": str(tmp_path)}}
    assert [key for key, _ in files_in(config)] == ["a[1]", "a[2]", "b.c"]


def test_differences_name_each_value_by_its_key():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == ["a.c was 2 and is 4", "d was 3 and is None", "e was None and is 5"]


def test_times_and_memory_are_told_from_what_must_be_equal(small_run):
    (row,) = metrics(small_run)
    own = {name.partition("/")[2] for name in row if is_of_the_machine(name)}
    assert {"iteration_s", "tokens_per_s", "tool_seconds", "overhead", "engine_idle", "peak_memory_gib"} <= own
    assert own.isdisjoint({"loss", "reward_mean", "tool_calls", "tokens", "ratio", "advantages"})
