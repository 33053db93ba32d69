import json

import torch

from appo.callbacks.recording import write_metrics


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
