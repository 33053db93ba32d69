from __future__ import annotations

import csv

from appo.monitoring.history import read_history


def test_the_parts_of_a_resumed_run_are_put_together(tmp_path):
    for version, epochs in ((0, [0, 1]), (1, [1, 2])):
        folder = tmp_path / f"csv/version_{version}"
        folder.mkdir(parents=True)
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "rollout/accuracy"])
            writer.writeheader()
            writer.writerows({"epoch": epoch, "rollout/accuracy": version} for epoch in epochs)
    assert [(row["epoch"], row["rollout/accuracy"]) for row in read_history(tmp_path)] == [(0, 0), (1, 1), (2, 1)]
