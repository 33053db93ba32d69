from __future__ import annotations

import csv

import pytest

from appo.commands.ablate.cautions import cautions_of_results, cautions_of_runs
from appo.commands.ablate.costs import Costs
from appo.commands.ablate.execution import Result
from appo.commands.ablate.runs import resolve_runs, runs_before_training
from appo.commands.ablate.spec import AblationSpec
from appo.commands.ablate.summary import Summary
from appo.commands.ablate.tables import ablation_page, write_runs
from tests.commands.ablate.scripted import iterations, resolve, result, two_scorers

ACCURACY = {"A": [0.10, 0.30, 0.20, 0.40, 0.50], "B": [0.21, 0.40, 0.31, 0.50, 0.61]}


def summary(spec: AblationSpec) -> Summary:
    runs = resolve_runs(spec, spec.combinations, resolve)
    before = [Result(run, [], {"test/accuracy": 0.05}) for run in runs_before_training(spec, runs)]
    trained = [result(run, 400, ACCURACY[run.combination[-1]][run.seed]) for run in runs]
    return Summary.of([*before, *trained], cautions_of_runs(runs), spec)


def test_the_costs_of_a_run_by_hand():
    rows = iterations(1000, 400.0)
    rows[1]["rollout/evaluation_s"] = 0.5
    rows[2]["rollout/generated_tokens"] = 450.0
    # Three iterations of two steps: 1,200 tokens.
    assert Costs.of(rows) == Costs(
        tokens=1200, steps=6, trained_tokens=2400, training_s=5.5, tool_calls=9, largest_iteration=450
    )
    assert Costs.of(rows).tokens_per_step == 200


def test_five_seeds_have_intervals_and_a_verdict(tmp_path):
    page = ablation_page(summary(two_scorers(tmp_path, seeds=(0, 1, 2, 3, 4))), two_scorers(tmp_path))
    # Differences 0.11, 0.10, 0.11, 0.10, 0.11: mean 0.106, deviation 0.00548, quantile 2.776, so 0.0068 on both sides.
    assert "| scorer=A | 5 | 0.300 [0.104, 0.496] | — | — | — | — |" in page
    assert "| scorer=B | 5 | 0.406 [0.212, 0.600] | +0.106 [+0.099, +0.113] | < 0.001 | < 0.001 | higher |" in page
    assert "| before training | 5 | 0.050 [0.050, 0.050] | — | — | — | — | — | — |" in page


def test_fewer_seeds_show_their_values_and_no_verdict(tmp_path):
    page = ablation_page(summary(two_scorers(tmp_path)), two_scorers(tmp_path))
    assert "| scorer=A | 2 | 0.200 (0.100, 0.300) | — | — | — | — |" in page
    assert "| scorer=B | 2 | 0.305 (0.210, 0.400) | +0.105 (+0.110, +0.100) | — | — | no verdict |" in page
    assert "| before training | 2 | 0.050 (0.050, 0.050) |" in page


def test_what_is_not_told_apart_and_what_is_lower_are_called_so(tmp_path, monkeypatch):
    spec = two_scorers(tmp_path, seeds=(0, 1, 2, 3, 4))
    monkeypatch.setitem(ACCURACY, "B", [0.0, 0.4, 0.1, 0.5, 0.5])
    assert "| not told apart |" in ablation_page(summary(spec), spec)
    monkeypatch.setitem(ACCURACY, "B", [0.0, 0.19, 0.1, 0.31, 0.4])
    assert "| lower |" in ablation_page(summary(spec), spec)


def test_the_page_says_what_a_run_took(tmp_path):
    spec = two_scorers(tmp_path)
    page = ablation_page(summary(spec), spec)
    # Five iterations of 400 tokens, two steps, 800 trained tokens, 2 s and 3 calls each.
    assert "| scorer=B | 16 | 2,000 | 10.0 | 200 | 4,000 | 10 s | 15 |" in page


def test_a_csv_row_has_what_the_run_took(tmp_path):
    spec = two_scorers(tmp_path, seeds=(0,))
    found = summary(spec)
    write_runs(tmp_path / "runs.csv", [*found.before, *found.trained], spec)
    before, a, b = csv.DictReader((tmp_path / "runs.csv").open())
    assert (before["combination"], before["rollout.scorer"], before["tokens"]) == ("before training", "", "")
    assert (a["rollout.scorer"], a["test/accuracy"]) == ("A", "0.1")
    assert (b["tokens"], b["steps"], b["trained_tokens"], b["training_s"], b["tool_calls"]) == (
        "2000", "10", "4000", "10", "15",
    )  # fmt: skip


def test_starting_policies_that_differ_are_tested_each(tmp_path):
    spec = two_scorers(tmp_path, vary={"model.policy": ("p", "q"), "rollout.scorer": ("A", "B")}, seeds=(3,))
    before = runs_before_training(spec, resolve_runs(spec, spec.combinations, resolve))
    assert [str(run) for run in before] == [
        "before training, policy=p,scorer=A, seed 3", "before training, policy=q,scorer=A, seed 3",
    ]  # fmt: skip
    assert [run.test_args[-1] for run in before] == ["--model.policy=p", "--model.policy=q"]
    # Under the options of the first combination, whose policy is not theirs.
    assert all("--rollout.scorer=A" in run.test_args for run in before)
    assert [run.specification["model.policy"] for run in before] == ["p", "q"]


def test_a_metric_of_the_log_has_no_row_before_training(tmp_path):
    spec = two_scorers(tmp_path, metric="rollout/accuracy")
    assert runs_before_training(spec, resolve_runs(spec, spec.combinations, resolve)) == []


def test_one_starting_policy_for_all_seeds_is_warned_of(tmp_path):
    spec = two_scorers(tmp_path)
    (caution,) = cautions_of_runs(resolve_runs(spec, spec.combinations, resolve)).values()
    assert caution.startswith("All seeds start from one policy, `start`: ")
    assert cautions_of_runs(resolve_runs(spec, spec.combinations, resolve)[:2]) == {}  # of one seed


@pytest.mark.parametrize(("per_iteration", "is_large"), [(100, False), (101, True)])
def test_an_iteration_over_a_twentieth_of_the_budget_is_warned_of(tmp_path, per_iteration, is_large):
    spec = two_scorers(tmp_path)
    runs = resolve_runs(spec, spec.combinations, resolve)
    found = list(cautions_of_results([result(run, per_iteration) for run in runs], spec).values())
    assert len(found) == (2 if is_large else 0)
    if is_large:
        assert "An iteration of `scorer=A` generates up to 101 tokens, 5.1% of the budget" in found[0]


@pytest.mark.parametrize(("tokens", "words"), [(94.4, "-5.6%"), (96, None), (104, None), (105.6, "+5.6%")])
def test_steps_that_sample_other_tokens_are_warned_of(tmp_path, tokens, words):
    spec = two_scorers(tmp_path, tokens=20000)
    runs = resolve_runs(spec, spec.combinations, resolve)
    results = [result(run, tokens if run.combination[-1] == "B" else 100) for run in runs]
    found = list(cautions_of_results(results, spec).values())
    assert [words is not None and words in caution for caution in found] == ([True] if words else [])
