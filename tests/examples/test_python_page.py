"""The way without the command line, word by word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appo.monitoring.trajectory_files import read_trajectories

PAGE = Path(__file__).parents[2] / "docs/python.md"


@pytest.fixture(scope="module")
def code() -> str:
    return re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


def test_it_is_short_and_complete(code):
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    assert "L.Trainer(" in code


def test_it_trains_with_a_scorer_and_a_reward_of_its_own(code, tmp_path, monkeypatch, policy_folder):
    monkeypatch.chdir(tmp_path)
    Path("policy").symlink_to(policy_folder)
    names: dict = {}
    # The policy of the tests is never right, so that its prompts have nothing to branch for.
    code, number = re.subn(r"Branching\(", 'Branching(parents="any", ', code)
    assert number == 1
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["trainer"].current_epoch == 2
    for iteration in range(2):
        records = list(read_trajectories(Path(f"runs/python/trajectories/iteration_{iteration:05d}.jsonl.zst")))
        roots = [record for record in records if record["branch_position"] is None]
        branches = [record for record in records if record["branch_position"] is not None]
        assert len(roots) == len(branches) == 16 * 4
        for record in records:
            assert record["reward"] == record["text"].endswith(record["prompt"]["answers"][0])
        for record in branches:
            parent = records[record["parent_id"]]
            surprise = -parent["old_log_probs"][record["branch_position"] + 1]
            assert record["branch_score"] == pytest.approx(surprise)
