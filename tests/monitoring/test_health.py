from __future__ import annotations

from pathlib import Path

import pytest

from appo.monitoring.health import HealthMonitor, findings_of
from appo.monitoring.health_rules import RULES, WINDOW, rule_table

PAGE = Path(__file__).parents[2] / "docs/healthy_run.md"


def history(metric, values):
    return [{"epoch": float(number), metric: value} for number, value in enumerate(values)]


def test_a_rule_speaks_once_until_a_whole_window_is_well():
    monitor = HealthMonitor()
    echoes = [0.9, 0.0, 0.6, 0.5, 0.3, 0.2, 0.1, 0.9, 0.9]
    # Means of three from the third iteration on: .5 .37 .47 .33 .2 .4 .63; all of three are below 0.4 in iteration 6.
    begun = [[each.rule.name for each in monitor.update(i, {"rollout/branch_echo": e})] for i, e in enumerate(echoes)]
    assert begun == [[], [], ["echoes"], [], [], [], [], [], ["echoes"]]
    first, second = monitor.findings
    assert (first.first, first.last, first.is_open) == (2, 4, False)
    assert first.value == pytest.approx(0.5)
    assert (second.first, second.is_open) == (8, True)


def test_a_line_says_what_is_wrong_and_which_key_to_change():
    (finding,) = findings_of(history("rollout/finished", [0.5, 0.5, 0.8]))
    assert finding.message == (
        "truncated responses: rollout/finished is 0.6, below 0.9: responses run into a limit, or the policy has not "
        "learned the token that ends a turn; try a larger rollout.limits.max_response_tokens, a longer appo sft"
    )


def test_entropy_is_compared_with_that_of_the_beginning():
    small = [0.05, 0.05, 0.05, 0.04, 0.04]
    assert findings_of(history("rollout/entropy", small)) == []
    (finding,) = findings_of(history("rollout/entropy", [1.0, 1.0, 1.0, 0.1, 0.1, 0.1]))
    assert finding.rule.name == "entropy collapse"
    assert (finding.first, finding.value) == (5, pytest.approx(0.1))


def test_branches_that_were_not_asked_for_are_not_missing():
    rows = history("rollout/branches_wanted", [0.0] * WINDOW)
    assert findings_of(row | {"rollout/branches_made": 0.0} for row in rows) == []
    rows = history("rollout/branches_wanted", [8.0] * WINDOW)
    (finding,) = findings_of(row | {"rollout/branches_made": 2.0} for row in rows)
    assert (finding.rule.name, finding.value) == ("missing branches", 0.25)


def test_only_scorers_that_compare_policies_need_a_policy_that_changes():
    rows = history("rollout/roots_changed_share", [0.0] * WINDOW)
    assert findings_of(rows) == []
    (finding,) = findings_of(row | {"rollout/score_likelihood_gain_std": 0.0} for row in rows)
    assert finding.rule.name == "unchanged policy"


def test_what_is_not_a_number_says_nothing():
    assert findings_of(history("train/kl", [float("nan")] * WINDOW)) == []


def test_the_page_has_the_rules_as_they_are():
    assert "\n".join(rule_table()) in PAGE.read_text()
    assert len({rule.name for rule in RULES}) == len(RULES)
