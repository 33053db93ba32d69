"""The prompts of combinations, set by what the runs of the first seed have sampled."""

from __future__ import annotations

import pytest

from appo.commands.ablate.command import perform_all
from appo.commands.ablate.matching import matched_combinations
from appo.commands.ablate.runs import resolve_runs
from tests.commands.ablate.scripted import ScriptedChildren, resolve, result, two_scorers

MATCHED_B = "runs/scorer=B,prompts_per_iteration=26"


def matched_prompts(tmp_path, first: float, second: float, *options: str) -> tuple[int, int]:
    """Prompts of an iteration and of a step of the second combination, by the tokens of an iteration."""
    spec = two_scorers(tmp_path, seeds=(0,), options=options)
    a, b = resolve_runs(spec, spec.combinations, resolve)
    pilots = {run.combination: result(run, tokens) for run, tokens in ((a, first), (b, second))}
    matched = matched_combinations(spec.combinations, pilots)
    assert matched[0] == spec.combinations[0]
    _, run = resolve_runs(spec, matched, resolve)
    return run.prompts


def test_prompts_make_tokens_a_step_equal_by_hand(tmp_path):
    # 16 prompts a step have sampled 200 tokens, 160 are wanted: 12.8 prompts, so 13; 2 steps an iteration.
    assert matched_prompts(tmp_path, 320, 400) == (26, 13)
    # 100 instead of 160: 25.6 prompts.
    assert matched_prompts(tmp_path, 320, 200) == (52, 26)


@pytest.mark.parametrize("tokens", [306, 320, 334])
def test_prompts_stay_where_tokens_a_step_are_within_the_tolerance(tmp_path, tokens):
    assert matched_prompts(tmp_path, 320, tokens) == (32, 16)


def test_every_ratio_is_matched_within_the_tolerance(tmp_path):
    for tokens in range(150, 513, 7):
        _, per_step = matched_prompts(tmp_path, 320, tokens)
        assert tokens / 16 * per_step / 320 == pytest.approx(1, abs=0.05), tokens


def test_prompts_of_a_whole_iteration_are_matched(tmp_path):
    options = ("--data.prompts_per_iteration=40", "--data.prompts_per_minibatch=40")
    assert matched_prompts(tmp_path, 300, 400, *options) == (30, 30)


def test_too_few_prompts_to_match_are_an_error(tmp_path):
    options = ("--data.prompts_per_iteration=4", "--data.prompts_per_minibatch=2")
    # 2 prompts: 150 tokens a step instead of 200; 3 prompts: 225.
    with pytest.raises(
        ValueError,
        match=r"must be so large that whole prompts sample 200 tokens a step within 5% in scorer=B, got 2: 3 would "
        r"sample 225; --match none leaves prompts as they are",
    ):
        matched_prompts(tmp_path, 400, 300, *options)


def perform(spec, children) -> int:
    return perform_all(spec, resolve_runs(spec, spec.combinations, resolve), resolve, children)


def test_the_first_seed_measures_and_serves_again_where_nothing_changes(tmp_path):
    children = ScriptedChildren({"A": 10.0, "B": 12.5})
    assert perform(two_scorers(tmp_path), children) == 0
    trained = [folder for command, folder in children.commands if command == "fit"]
    assert sorted(trained[:2]) == ["runs/scorer=A/seed_0", "runs/scorer=B/seed_0"]
    assert sorted(trained[2:]) == ["runs/scorer=A/seed_1", f"{MATCHED_B}/seed_0", f"{MATCHED_B}/seed_1"]
    # What only measures is not tested.
    tested = [folder for command, folder in children.commands if command == "test"]
    assert sorted(tested) == [
        "before/scorer=A/seed_0/test", "before/scorer=A/seed_1/test", "runs/scorer=A/seed_0/test",
        "runs/scorer=A/seed_1/test", f"{MATCHED_B}/seed_0/test", f"{MATCHED_B}/seed_1/test",
    ]  # fmt: skip


def test_a_matched_ablation_goes_on_without_measuring_again(tmp_path):
    perform(two_scorers(tmp_path), ScriptedChildren({"A": 10.0, "B": 12.5}))
    again = ScriptedChildren({})
    assert perform(two_scorers(tmp_path), again) == 0
    assert again.commands == []
    more = ScriptedChildren({"A": 10.0, "B": 12.5})
    perform(two_scorers(tmp_path, seeds=(0, 1, 2)), more)
    assert sorted(folder for command, folder in more.commands if command == "fit") == [
        "runs/scorer=A/seed_2", f"{MATCHED_B}/seed_2",
    ]  # fmt: skip


def test_without_matching_runs_are_as_configured(tmp_path, caplog):
    children = ScriptedChildren({"A": 10.0, "B": 12.5})
    assert perform(two_scorers(tmp_path, match="none"), children) == 0
    assert [folder for command, folder in children.commands if command == "fit"] == [
        "runs/scorer=A/seed_0", "runs/scorer=B/seed_0", "runs/scorer=A/seed_1", "runs/scorer=B/seed_1",
    ]  # fmt: skip
    assert "An optimizer step of `scorer=B` has generated +25.0% tokens against `scorer=A`" in caplog.text


def test_a_combination_that_cannot_be_measured_is_left_out(tmp_path, capsys):
    children = ScriptedChildren({"A": 10.0})
    assert perform(two_scorers(tmp_path), children) == 1
    assert "1 of 5 runs have failed: scorer=B, seed 0" in capsys.readouterr().err
    page = (tmp_path / "ablation.md").read_text()
    assert "- scorer=B, seed 0: appo fit ended with status 3" in page
    assert "| scorer=A | 2 |" in page


def test_without_the_first_combination_nothing_is_matched(tmp_path, capsys):
    children = ScriptedChildren({"B": 10.0})
    assert perform(two_scorers(tmp_path), children) == 1
    assert "have failed: scorer=A, seed 0" in capsys.readouterr().err
    assert [folder for command, folder in children.commands if command == "fit"] == [
        "runs/scorer=A/seed_0", "runs/scorer=B/seed_0",
    ]  # fmt: skip


def test_prompts_that_cannot_be_matched_end_the_command_with_a_line(tmp_path, capsys):
    options = ("--data.prompts_per_iteration=4", "--data.prompts_per_minibatch=2")
    with pytest.raises(SystemExit) as exit_info:
        perform(two_scorers(tmp_path, options=options), ScriptedChildren({"A": 100.0, "B": 75.0}))
    assert exit_info.value.code == 2
    assert "error: data.prompts_per_minibatch must be so large" in capsys.readouterr().err
