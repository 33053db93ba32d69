from dataclasses import replace

import pytest

from appo.core.trajectory import ToolCall
from appo.monitoring.rollout_metrics import cost_metrics, trajectory_columns
from appo.rollouts import SamplingCosts
from tests.core.two_turns import parent_trajectory


def test_what_is_neither_engine_nor_policy_is_overhead():
    seconds = {"sampling": 2.0, "branching": 2.0, "log_probs": 1.0, "update": 3.0, "rewards": 0.5, "scoring": 0.5}
    costs = cost_metrics(seconds, total_s=10.0, num_tokens=400, sampled=SamplingCosts(4.0, 0.0, 400))
    assert costs["overhead"] == pytest.approx(0.2)  # 10 - (2 + 2 + 1 + 3) of 10
    assert costs["tokens_per_s"] == pytest.approx(100.0)  # 400 tokens in 2 + 2 seconds
    assert costs["rewards_s"] == 0.5


def test_each_side_idles_while_it_waits_for_the_other():
    # The engine generates for 6 of 10 seconds and waits for tools for 1; the trainer has 3 of these 7 to wait.
    seconds = {"branching": 1.5, "tools": 0.5, "waiting": 1.0, "update": 7.0}
    costs = cost_metrics(seconds, total_s=10.0, num_tokens=700, sampled=SamplingCosts(6.0, 1.0, 770))
    assert costs["trainer_idle"] == pytest.approx(0.3)
    assert costs["engine_idle"] == pytest.approx(0.4)
    assert costs["tokens_per_s"] == pytest.approx(110.0)  # those dropped behind a call were sampled, too
    assert costs["generated_tokens"] == 700.0
    assert costs["overhead"] == pytest.approx(0.05)  # tools, which are neither engine nor policy


def test_failed_calls_are_counted_by_kind_and_made_up_names_are_not_names_of_metrics():
    def call(tool, failure):
        return ToolCall(tool, "", "", failure, 0.0, 4)

    calls = (call("python", None), call("python", "timeout"), call("pyhton", "unknown"), call("", "malformed"))
    trajectory = replace(parent_trajectory(), tool_calls=calls, invented_results=3)
    columns = trajectory_columns([trajectory, replace(trajectory, tool_calls=())])
    sums = {name: float(column.sum()) for name, column in columns.items()}
    by_tool = {name: value for name, value in sums.items() if name.startswith("calls of ")}
    assert (sums["tool_calls"], by_tool) == (4.0, {"calls of python": 2.0})
    assert sums["calls_made"] == 4.0
    assert sums["invented_results"] == 6.0
    by_kind = {name: value for name, value in sums.items() if name.startswith("failures ")}
    assert sums["tool_failures"] == 3.0
    assert by_kind == {"failures timeout": 1.0, "failures unknown": 1.0, "failures malformed": 1.0}
