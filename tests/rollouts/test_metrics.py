import pytest

from appo.rollouts import cost_metrics


def test_what_is_neither_engine_nor_policy_is_overhead():
    seconds = {"sampling": 2.0, "branching": 2.0, "log_probs": 1.0, "update": 3.0, "rewards": 0.5, "scoring": 0.5}
    costs = cost_metrics(seconds, total_s=10.0, num_tokens=400)
    assert costs["overhead"] == pytest.approx(0.2)  # 10 - (2 + 2 + 1 + 3) of 10
    assert costs["tokens_per_s"] == pytest.approx(100.0)  # 400 tokens in 2 + 2 seconds
    assert costs["rewards_s"] == 0.5
