from dataclasses import replace

import pytest

from appo.rollouts import cost_metrics
from appo.rollouts.metrics import trajectory_columns
from appo.trajectory import ToolCall
from tests.episodes import parent_trajectory


def test_what_is_neither_engine_nor_policy_is_overhead():
    seconds = {"sampling": 2.0, "branching": 2.0, "log_probs": 1.0, "update": 3.0, "rewards": 0.5, "scoring": 0.5}
    costs = cost_metrics(seconds, total_s=10.0, num_tokens=400)
    assert costs["overhead"] == pytest.approx(0.2)  # 10 - (2 + 2 + 1 + 3) of 10
    assert costs["tokens_per_s"] == pytest.approx(100.0)  # 400 tokens in 2 + 2 seconds
    assert costs["rewards_s"] == 0.5


def test_failed_calls_are_counted_by_kind_and_made_up_names_are_not_names_of_metrics():
    def call(tool, failure):
        return ToolCall(tool, "", "", failure, 0.0, 4)

    calls = (call("python", None), call("python", "timeout"), call("pyhton", "unknown"), call("", "malformed"))
    trajectory = replace(parent_trajectory(), tool_calls=calls)
    columns = trajectory_columns([trajectory, replace(trajectory, tool_calls=())])
    sums = {name: float(column.sum()) for name, column in columns.items()}
    by_tool = {name: value for name, value in sums.items() if name.startswith("calls of ")}
    assert (sums["tool_calls"], by_tool) == (4.0, {"calls of python": 2.0})
    by_kind = {name: value for name, value in sums.items() if name.startswith("failures ")}
    assert sums["tool_failures"] == 3.0
    assert by_kind == {"failures timeout": 1.0, "failures unknown": 1.0, "failures malformed": 1.0}
