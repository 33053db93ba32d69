import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
import zstandard

from appo.monitoring.trajectory_files import read_trajectories
from appo.policy.loading import load_tokenizer
from appo.prompts import BENCHMARKS
from tests.small_run import CONFIG, metrics, run

FOLDER = Path(CONFIG).parent / "benchmarks"
MATHEMATICS = {"aime24", "aime25", "math500", "gsm8k", "math"}
SYSTEM = "Mind the tags."


@pytest.fixture
def evaluate(tmp_path, policy_folder):
    """Writes a file of a benchmark and measures a tiny policy on it, with the config that the project has for it."""

    def evaluate_on(name, rows, *options, training=CONFIG, policy=policy_folder):
        files = tmp_path / "benchmarks"
        files.mkdir(exist_ok=True)
        if rows:
            (files / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run(
            "test", tmp_path / "run", policy, "--config", str(training), "--config", str(FOLDER / f"{name}.yaml"),
            f"--model.policy={policy}", f"--trainer.default_root_dir={tmp_path / 'run'}",
            f"--data.source.folder={files}",
            "--data.max_prompt_tokens=160", "--rollout.limits.max_response_tokens=24",
            "--rollout.syntax.instructions=null", *options,
        )  # fmt: skip

    return evaluate_on


def test_every_benchmark_has_a_config():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_config_says_what_is_measured_and_leaves_the_rest_to_the_training(name):
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(config) == {"trainer", "data", "rollout"}
    assert config["trainer"] == {"default_root_dir": f"runs/benchmarks/{name}"}
    assert config["data"].pop("max_prompt_tokens") >= 2048
    assert config["data"] == {
        "source": {"class_path": "BenchmarkQuestions", "init_args": {"name": name}},
        "num_test": None,
        "num_validation": None,
    }
    assert set(config["rollout"]) == {"reward", "evaluation"}
    reward = "MathReward" if name in MATHEMATICS else "ExactMatchReward"
    assert config["rollout"]["reward"] == {"class_path": reward}
    # Several samples of a greedy policy are one.
    evaluation = config["rollout"]["evaluation"]
    assert (evaluation["samples"] > 1) == (evaluation["temperature"] > 0)


def test_the_documentation_lists_what_the_configs_say():
    lines = (FOLDER.parents[1] / "docs/evaluation.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.count("|") == 8]
    listed = {row[0]: (int(row[2]), row[3], int(row[4]), float(row[5])) for row in rows if row[0] in BENCHMARKS}
    configs = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["rollout"] for name in BENCHMARKS}
    assert listed == {
        name: (
            benchmark.num_rows,
            configs[name]["reward"]["class_path"],
            configs[name]["evaluation"]["samples"],
            configs[name]["evaluation"]["temperature"],
        )
        for name, benchmark in BENCHMARKS.items()
    }


def test_a_policy_is_measured_with_the_system_prompt_of_its_training(tmp_path, policy_folder, evaluate):
    trained = run(
        "fit", tmp_path / "fit", policy_folder, f"--data.system_prompt={SYSTEM}", "--trainer.max_epochs=1",
        "--rollout.reward=tests.small_run.EvenTokens",
    )  # fmt: skip
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    # The config that the training left behind holds its prompt; the command line does not repeat it.
    left_behind = trained / "csv/version_0/config.yaml"
    folder = evaluate("bamboogle", rows, "--rollout.evaluation.samples=2", training=left_behind)
    tokenizer = load_tokenizer(str(policy_folder))
    opening = tokenizer.decode(tokenizer.encode(f"<|system|>{SYSTEM}<|end|><|user|>", add_special_tokens=False))
    for path in (trained / "trajectories/iteration_00000.jsonl.zst", folder / "trajectories/test_00000.jsonl.zst"):
        texts = [tokenizer.decode(record["prompt"]["token_ids"]) for record in read_trajectories(path)]
        assert texts
        assert all(text.startswith(opening) for text in texts)
    values = json.loads((folder / "test.json").read_text())
    names = "accuracy accuracy/bamboogle exact_match f1 pass@1 pass@1_low pass@2 answered format finished tool_calls"
    assert {f"test/{name}" for name in [*names.split(), "tool_productivity", "response_length"]} <= set(values)
    assert values["test/num_trajectories"] == 6
    assert "| metric | bamboogle |" in (folder / "test.md").read_text()


def test_mathematics_is_judged_as_mathematics(evaluate):
    rows = [{"question": "What is 1 + 1?", "answer": "2"}]
    folder = evaluate("aime24", rows, "--rollout.evaluation.samples=3")
    values = json.loads((folder / "test.json").read_text())
    assert {"test/undecided", "test/pass@3", "test/accuracy/aime24"} <= set(values)


def test_a_missing_file_is_told_before_the_policy_is_loaded(tmp_path, policy_folder, evaluate):
    without_weights = tmp_path / "policy"
    shutil.copytree(policy_folder, without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"must hold the benchmark hle .* get it from https://huggingface"):
        evaluate("hle", [], policy=without_weights)


def test_training_on_one_source_is_validated_on_a_benchmark(tmp_path, policy_folder):
    for name in ("train", "aime24"):
        lines = (json.dumps({"question": f"{name} {i}?", "answer": str(i)}) + "\n" for i in range(5))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sources = {
        "own": {"class_path": "JsonlQuestions", "init_args": {"train": str(tmp_path / "train.jsonl")}},
        "held": {"class_path": "BenchmarkQuestions", "init_args": {"name": "aime24", "folder": str(tmp_path)}},
    }
    source = {"class_path": "MixedQuestions", "init_args": {"sources": sources}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    folder = run(
        "fit", tmp_path / "run", policy_folder, "--config", str(tmp_path / "mixed.yaml"), "--trainer.max_epochs=4",
        "--trainer.check_val_every_n_epoch=2", "--rollout.reward=tests.small_run.EvenTokens",
        "--rollout.syntax.instructions=null",
    )  # fmt: skip
    validated = [int(row["epoch"]) for row in metrics(folder) if row.get("validation/accuracy/aime24")]
    assert validated == [1, 3]
    held = {record["prompt"]["id"] for record in read_trajectories(folder / "trajectories/validation_00001.jsonl.zst")}
    assert held == {f"held/{line}" for line in range(1, 6)}
    used = read_trajectories(folder / "trajectories/iteration_00000.jsonl.zst")
    assert {record["prompt"]["id"].partition("/")[0] for record in used} == {"own"}


def contents(folder: Path) -> bytes:
    """All files of a run, decompressed."""
    texts = []
    for path in folder.rglob("*"):
        if path.suffix == ".zst":
            texts.append(zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read())
        elif path.is_file():
            texts.append(path.read_bytes())
    assert texts
    return b"".join(texts)


SECRET = [{"question": f"CANARY {i}?", "answer": f"SECRET {i}", "rationale": "CANARY", "image": ""} for i in range(3)]


def test_the_text_of_a_protected_benchmark_stays_out_of_files_and_logs(evaluate, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        folder = evaluate("hle", SECRET, "--rollout.evaluation.samples=2")
    records = list(read_trajectories(folder / "trajectories/test_00000.jsonl.zst"))
    assert [record["prompt"]["id"] for record in records] == ["1", "1", "2", "2", "3", "3"]
    for record in records:
        assert record["prompt"]["source"] == "hle"
        assert not record["prompt"]["is_public"]
        assert {"accuracy", "f1", "format"} <= set(record["reward_parts"])
        assert record["finish_reason"] in {"eos", "length", "tool_limit"}
        assert len(record["policy_versions"]) == len(record["behavior_log_probs"]) > 0
        hidden = [record[key] for key in ("text", "segments", "token_ids", "reward_reason")]
        hidden += [record["prompt"][key] for key in ("question", "token_ids", "answers")]
        assert hidden == [None] * 7
    written = contents(folder)
    shown = capfd.readouterr()
    for secret in ("CANARY", "SECRET"):
        assert secret.encode() not in written
        assert secret not in caplog.text + shown.out + shown.err
    assert json.loads((folder / "test.json").read_text())["test/num_trajectories"] == 6


def test_text_is_saved_where_a_user_says_so(evaluate):
    folder = evaluate("hle", SECRET, "--rollout.evaluation.samples=1", "--data.source.save_text=true")
    assert contents(folder).count(b"CANARY") == len(SECRET)
