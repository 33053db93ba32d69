"""What is measured of evaluated trajectories, in one process and in two."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from appo.core.trajectory import RewardResult, Trajectory
from appo.distributed import comm
from appo.monitoring.evaluation_metrics import EvaluationMetrics, Moments, majority_accuracy, pass_at_k
from tests.core.two_turns import parent_trajectory
from tests.distributed.processes import as_processes


def sample(prompt: str, right: bool, answer: str | None = None, tools: tuple[str, ...] = ()) -> tuple:
    parent = parent_trajectory()
    calls = tuple(replace(parent.tool_calls[0], tool=tool) for tool in tools)
    trajectory = replace(parent, prompt=replace(parent.prompt, id=prompt, source=prompt[0]), tool_calls=calls)
    assert isinstance(trajectory, Trajectory)
    return trajectory, RewardResult(float(right), {"accuracy": float(right)}, answer=answer)


def measured(*batches) -> dict[str, float]:
    metrics = EvaluationMetrics()
    for batch in batches:
        metrics.update(batch)
    return metrics.compute()


@pytest.mark.parametrize(("num_right", "k"), [(0, 1), (2, 1), (2, 2), (2, 4), (5, 3), (4, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(num_right, k):
    subsets = list(combinations([True] * num_right + [False] * (5 - num_right), k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(num_right, 5, k) == pytest.approx(expected)


def test_the_interval_of_a_mean_over_prompts_by_hand():
    moments = Moments()
    for num_right in (0, 2, 4, 2):
        moments.add(pass_at_k(num_right, 4, 1))
    # Values 0, .5, 1, .5: mean .5, sample variance (.25 + .25) / 3, standard error sqrt(.1667 / 4) = .2041.
    assert moments.mean == 0.5
    assert moments.interval == pytest.approx((0.5 - 1.96 * 0.2041, 0.5 + 1.96 * 0.2041), abs=1e-4)


def test_a_single_prompt_says_nothing_of_the_interval():
    moments = Moments()
    moments.add(pass_at_k(1, 2, 1))
    assert (moments.mean, moments.interval) == (0.5, (0.0, 1.0))


def test_prompts_are_told_apart_and_every_trajectory_counts():
    values = measured(
        [sample("a1", True, tools=("python", "python")), sample("a1", False), sample("b2", False), sample("b2", False)],
        [sample("b3", True, tools=("search",)), sample("b3", True)],
    )
    assert values["num_trajectories"] == 6
    assert values["accuracy"] == values["reward"] == values["pass@1"] == pytest.approx(0.5)
    assert values["pass@2"] == pytest.approx(2 / 3)
    assert (values["accuracy/a"], values["accuracy/b"]) == (0.5, 0.5)
    assert (values["tool_calls"], values["tool_use"]) == (0.5, pytest.approx(1 / 3))
    assert (values["tool_calls_python"], values["tool_calls_search"]) == pytest.approx((2 / 6, 1 / 6))
    assert values["tool_productivity"] == pytest.approx(100 * 0.5 * 0.5 / 0.6)
    assert "maj@2" not in values


def test_k_are_powers_of_two_and_the_number_of_trajectories():
    values = measured([sample("a", i == 0, answer="x" if i == 0 else "y") for i in range(6)])
    assert sorted(name for name in values if "@" in name) == [
        "maj@2", "maj@4", "maj@6", "pass@1", "pass@1_high", "pass@1_low", "pass@2", "pass@4", "pass@6",
    ]  # fmt: skip
    # One of two tied answers is right; of more, the wrong one has the majority.
    assert (values["maj@2"], values["maj@4"], values["maj@6"]) == (0.5, 0.0, 0.0)


def test_a_majority_needs_answers():
    assert majority_accuracy([None, None, 0], [0.0, 0.0, 1.0]) == 1.0
    assert majority_accuracy([None], [0.0]) == 0.0
    assert majority_accuracy([0, 1, 1], [1.0, 0.0, 0.0]) == 0.0


def test_a_majority_is_of_answers_that_mean_the_same():
    # Of four, two say -x in different ways, one x, one something else: what is spelled alike otherwise is no majority.
    values = measured(
        [
            sample("a", True, answer="-x"),
            sample("a", False, answer="x"),
            sample("a", True, answer=r"$-x$"),
            sample("a", False, answer="2x"),
        ]
    )
    assert (values["maj@2"], values["maj@4"]) == (0.5, 1.0)


def test_without_accuracy_there_is_nothing_to_pass():
    trajectory, _ = sample("a", True)
    values = measured([(trajectory, RewardResult(2.5))])
    assert values["reward"] == 2.5
    assert not any("@" in name or "productivity" in name for name in values)


def test_reset_forgets_everything():
    metrics = EvaluationMetrics()
    metrics.update([sample("a", True)])
    metrics.reset()
    metrics.update([sample("b", False)])
    assert metrics.compute()["num_trajectories"] == 1


BATCHES = (
    [sample("a", True, "4", tools=("python",)), sample("a", False, "5")],
    [sample("b", False), sample("b", False), sample("c", True), sample("c", True)],
)


def unequal_parts(rank: int) -> None:
    # Nobody has joined as yet: the group that connects the two is not the trainer's.
    expected = measured(*BATCHES) if rank == 0 else None
    comm.join(2, timeout_s=20)
    expected = comm.broadcast(expected)
    assert (expected["num_trajectories"], expected["maj@2"], expected["tool_calls_python"]) == (6, 0.5, 1 / 6)
    # Only the first process sees an answer and a tool.
    assert measured(BATCHES[rank]) == pytest.approx(expected)
    assert measured(*(BATCHES if rank else [])) == pytest.approx(expected)


def test_two_processes_measure_what_one_does(tmp_path):
    as_processes(unequal_parts, tmp_path)
