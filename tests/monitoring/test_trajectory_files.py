from __future__ import annotations

import pytest
import torch

from appo.core.trajectory import BranchPoint, Prompt, RewardResult, Segment, ToolCall, Trajectory
from appo.monitoring.trajectory_files import (
    TrajectoryWriter,
    read_trajectories,
    trajectory_from_record,
    trajectory_record,
    without_text,
)


@pytest.fixture
def trajectory() -> Trajectory:
    return Trajectory(
        prompt=Prompt("q", "Ä?", (1, 2), ("a", "b"), "toy"),
        token_ids=torch.tensor([1, 2, 3, 4, 5]),
        response_mask=torch.tensor([False, False, True, False, True]),
        behavior_log_probs=torch.tensor([0.0, 0.0, -0.1, 0.0, -0.30000001]),
        policy_versions=torch.tensor([-1, -1, 3, -1, 3]),
        segments=(Segment("x", True), Segment("<result>", False), Segment("é", True)),
        tool_calls=(ToolCall("python", "1", "2", None, 0.25, 3),),
        finish_reason="eos",
        cached_tokens=7,
    )


def test_a_trajectory_survives_its_record(tmp_path, trajectory):
    path = tmp_path / "folder" / "trajectories.jsonl.zst"
    with TrajectoryWriter(path) as writer:
        writer.write([trajectory_record(trajectory, RewardResult(1.5, {"f1": 1.0}, "right"))])
    (record,) = read_trajectories(path)
    assert (record["reward"], record["reward_parts"], record["reward_reason"]) == (1.5, {"f1": 1.0}, "right")
    again = trajectory_from_record(record)
    for name in ("prompt", "segments", "tool_calls", "finish_reason", "cached_tokens"):
        assert getattr(again, name) == getattr(trajectory, name)
    for name in ("token_ids", "response_mask", "behavior_log_probs", "policy_versions"):
        assert torch.equal(getattr(again, name), getattr(trajectory, name)), name


def test_without_text_what_was_said_is_gone_and_what_was_measured_stays(trajectory):
    record = trajectory_record(trajectory, RewardResult(1.5, {"f1": 1.0}, "right: answered 'é'"))
    bare = without_text(record)
    assert bare.keys() == record.keys()
    assert {key for key, value in bare.items() if value is None} == {
        "text", "segments", "token_ids", "reward_reason", "branch_position", "branch_score",
    }  # fmt: skip
    assert bare["prompt"] == {
        "id": "q", "question": None, "token_ids": None, "answers": None, "source": "toy", "is_public": True,
    }  # fmt: skip
    assert bare["tool_calls"] == [
        {"tool": "python", "argument": None, "result": None, "failure": None, "duration_s": 0.25, "position": 3}
    ]
    assert record["prompt"]["question"] == "Ä?"


def test_what_is_not_finite_becomes_null(trajectory):
    scores = torch.tensor([float("-inf"), float("-inf"), 0.5, float("-inf"), float("nan")])
    assert trajectory_record(trajectory, per_token={"scores": scores})["scores"] == [None, None, 0.5, None, None]


def test_a_branch_tells_where_it_left(trajectory):
    record = trajectory_record(trajectory)
    branch = trajectory_from_record(record, origin=BranchPoint(trajectory, 2, 0.75))
    assert (trajectory_record(branch)["branch_position"], trajectory_record(branch)["branch_score"]) == (2, 0.75)
    assert branch.num_own_tokens == 1


def test_a_file_that_was_not_finished_does_not_appear(tmp_path):
    path = tmp_path / "trajectories.jsonl.zst"
    with pytest.raises(ValueError, match="not JSON compliant"), TrajectoryWriter(path) as writer:
        writer.write([{"a": 1}, {"a": float("nan")}])
    assert not path.exists()
