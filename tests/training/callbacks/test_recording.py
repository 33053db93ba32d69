import json

import torch

from appo.training.callbacks.recording import write_metrics


def test_metrics_are_written_for_programs_and_for_people(tmp_path):
    metrics = {"test/accuracy": 0.5, "test/accuracy/chains": 0.25, "test/accuracy/search": 0.75, "test/pass@1": 0.5}
    write_metrics(tmp_path / "new/test.json", {name: torch.tensor(value) for name, value in metrics.items()})
    assert json.loads((tmp_path / "new/test.json").read_text()) == metrics
    assert (tmp_path / "new/test.md").read_text().splitlines() == [
        "| metric | all | chains | search |",
        "|---|---:|---:|---:|",
        "| accuracy | 0.5 | 0.25 | 0.75 |",
        "| pass@1 | 0.5 |  |  |",
    ]


def test_the_table_begins_with_what_matters_and_shows_intervals(tmp_path):
    metrics = {
        "tool_calls": 1.25, "reward": 0.5, "pass@10": 0.75, "pass@2": 0.625, "pass@1": 0.5, "pass@1_low": 0.25,
        "pass@1_high": 0.75, "num_trajectories": 42208.0, "answer/f1": 0.125, "f1": 0.25, "accuracy": 0.5,
        "accuracy/aime24": 0.5,
    }  # fmt: skip
    write_metrics(tmp_path / "test.json", {f"test/{name}": torch.tensor(value) for name, value in metrics.items()})
    assert (tmp_path / "test.md").read_text().splitlines() == [
        "| metric | aime24 |",
        "|---|---:|",
        "| accuracy | 0.5 |",
        "| f1 | 0.25 |",
        "| pass@1 | 0.5 [0.25, 0.75] |",
        "| pass@2 | 0.625 |",
        "| pass@10 | 0.75 |",
        "| reward | 0.5 |",
        "| answer/f1 | 0.125 |",
        "| num_trajectories | 42,208 |",
        "| tool_calls | 1.25 |",
    ]
