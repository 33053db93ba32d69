from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from appo.commands.ablate.curves import areas_by_run, curve_metric
from appo.commands.ablate.execution import Result
from appo.commands.ablate.figure import draw_curves
from appo.commands.ablate.runs import resolve_runs
from appo.commands.ablate.spec import AblationSpec
from tests.commands.ablate.scripted import resolve, result, two_scorers

REWARD = "rollout/reward_initial_mean"


def results(spec: AblationSpec) -> list[Result]:
    return [result(run, 400) for run in resolve_runs(spec, spec.combinations, resolve)]


def with_metric(found: Result, name: str) -> Result:
    return replace(found, history=[{**row, name: 0.5} for row in found.history])


def test_the_curve_is_that_of_the_metric_from_validation_where_all_runs_have_it(tmp_path):
    spec = two_scorers(tmp_path)
    found = [with_metric(each, "rollout/accuracy") for each in results(spec)]
    # Not the rollouts' accuracy, in which branches count.
    assert curve_metric(found, spec) == REWARD
    validated = [with_metric(each, "validation/accuracy") for each in found]
    assert curve_metric(validated, spec) == "validation/accuracy"
    assert curve_metric([*validated[1:], found[0]], spec) == REWARD
    assert curve_metric(found, two_scorers(tmp_path, metric="rollout/accuracy")) == "rollout/accuracy"
    assert curve_metric(validated, two_scorers(tmp_path, curve="rollout/accuracy")) == "rollout/accuracy"


def test_areas_are_over_the_tokens_that_all_runs_cover(tmp_path):
    spec = two_scorers(tmp_path, seeds=(0,))
    a, b = results(spec)
    longer = replace(b, history=b.history[1:])
    # The reward rises by 0.1 every 400 tokens, and is 0.5 at 2,000; the second run begins at 800 with 0.2.
    areas = areas_by_run([a, longer], spec)
    assert areas == {"scorer=A": {0: pytest.approx(0.35)}, "scorer=B": {0: pytest.approx(0.35)}}
    assert areas_by_run([], spec) == {"scorer=A": {}, "scorer=B": {}}


@pytest.mark.parametrize(
    ("num_seeds", "title"),
    [
        (1, "mean over seeds"),
        (4, "mean over seeds, thin: each seed"),
        (5, "mean over seeds, 95% t interval"),
    ],
)
def test_few_seeds_are_drawn_each_and_many_as_a_band(tmp_path, num_seeds, title):
    spec = two_scorers(tmp_path, seeds=tuple(range(num_seeds)))
    draw_curves(results(spec), REWARD, spec, [tmp_path / "curves.svg"])
    texts = {"".join(element.itertext()) for element in ElementTree.parse(tmp_path / "curves.svg").iter()}
    assert title in texts
    ids = [element.get("id", "") for element in ElementTree.parse(tmp_path / "curves.svg").iter()]
    bands = sum("FillBetween" in each for each in ids)
    assert bands == (2 if num_seeds == 5 else 0)
