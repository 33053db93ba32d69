"""A real pilot study through the command line, of a tiny policy."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import pytest

from appo.__main__ import main
from appo.commands.pilot.scoring import LATER
from appo.sft import TinyPolicy, WorldConversations
from tests.small_run import CONFIG, FEW_TOKENS, run

QUESTIONS = "questions.jsonl"

OPTIONS = (
    "--questions=4",
    "--roots=2",
    "--positions=8",
    "--continuations=4",
    "--at-once=2",
    "--rollout.reward=tests.small_run.EvenTokens",
    "--influence=tests.scorers.functions:influence",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory, policy_folder) -> Path:
    folder = tmp_path_factory.mktemp("study") / "pilot"
    run("pilot", folder, policy_folder, *OPTIONS, f"--out={folder}")
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "positions.csv").open() as file:
        return list(csv.DictReader(file))


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / QUESTIONS).read_text().splitlines()]


def page_without_costs(folder: Path) -> str:
    return (folder / "pilot.md").read_text().split("## Cost")[0]


def test_every_decision_is_drawn_anew_as_often_as_asked(study):
    assert len(records(study)) == 4
    for question in records(study):
        assert len(question["root_rewards"]) == 2
        assert len(question["decisions"]) == 8
        assert question["num_continuations"] <= 32
        for decision in question["decisions"]:
            assert len(decision["tokens"]) == len(decision["rewards"]) == len(decision["right"]) == 4
            assert 0.0 <= decision["depth"] < 1.0
    # Nothing makes an untrained policy draw the same token again.
    drawn = [len({*decision["tokens"]}) for question in records(study) for decision in question["decisions"]]
    assert sum(drawn) / len(drawn) > 3


def test_continuations_earn_what_follows_the_tokens_before(study):
    """The reward is the mean over all sampled tokens, so those of late decisions are near that of their root."""
    for question in records(study):
        for decision in question["decisions"]:
            spread = max(abs(reward - question["root_rewards"][decision["root"]]) for reward in decision["rewards"])
            assert spread <= 1.0 - decision["depth"] + 1e-6


def test_known_influence_comes_first(study):
    for question in records(study):
        known = [decision["known"] for decision in question["decisions"]]
        # Six in seven tokens have one, and there are more of those than are measured.
        assert min(known) > 0.0


def test_the_table_has_a_row_a_decision_and_a_column_a_scorer(study):
    rows = table(study)
    assert len(rows) == 32
    for row in rows:
        assert float(row["var_r_low"]) <= float(row["var_r_high"])
        assert float(row["known_influence"]) == float(row["score_Oracle"])
        assert 0.0 <= float(row["reward_mean"]) <= 1.0
    assert {"score_BranchingScore", "score_Entropy", "score_HindsightDivergence", "score_TreeUniform"} <= rows[0].keys()
    assert "score_NoBranching" not in rows[0]


def test_the_page_tells_of_all_scorers_and_of_those_that_have_no_score(study):
    page = (study / "pilot.md").read_text()
    assert "4 questions of the test split, 2 roots each, 32 of their sampled tokens" in page
    for name in ("`Entropy`", "`Oracle`", "`Surprisal`", "a random decision", "oracle: Var_a Q"):
        assert f"| {name} |" in page
    assert "- `FunctionScorer`: has no defaults for function" in page
    assert "- `NoBranching`: refuses every position" in page
    for name in ("spearman", "scores", "depth"):
        assert f"]({name}.png)" in page
        assert matplotlib.image.imread(study / f"{name}.png").std() > 0
        assert ElementTree.parse(study / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_study_that_was_stopped_goes_on_to_the_same_result(study, tmp_path, policy_folder):
    folder = tmp_path / "stopped"
    # A smaller study is the beginning of a larger one; a killed process left a line unfinished.
    run("pilot", folder, policy_folder, *OPTIONS, "--questions=3", f"--out={folder}")
    assert "3 questions" in (folder / "pilot.md").read_text()
    path = folder / QUESTIONS
    path.write_bytes(path.read_bytes()[:-100])
    run("pilot", folder, policy_folder, *OPTIONS, f"--out={folder}")
    assert table(folder) == table(study)
    assert page_without_costs(folder) == page_without_costs(study)
    for question, other in zip(records(folder), records(study), strict=True):
        # What it takes is measured by the clock, and shared by those that are sampled together.
        assert question | dict.fromkeys(("seconds", "num_tokens")) == other | dict.fromkeys(("seconds", "num_tokens"))


def test_what_is_there_is_not_measured_again(study, policy_folder):
    before = (study / QUESTIONS).stat().st_mtime_ns
    page = (study / "pilot.md").read_text()
    run("pilot", study, policy_folder, *OPTIONS, f"--out={study}")
    assert (study / QUESTIONS).stat().st_mtime_ns == before
    assert (study / "pilot.md").read_text() == page


def test_what_the_policy_has_become_scores_the_same_decisions(study, small_run, tmp_path, policy_folder):
    folder = tmp_path / "pilot"
    run("pilot", folder, policy_folder, *OPTIONS, f"--out={folder}", f"--later-policy={small_run / 'policy'}")
    for question, other in zip(records(folder), records(study), strict=True):
        assert question["decisions"] == other["decisions"]
        scores = question["scores"]
        later = {name.removesuffix(LATER) for name in scores if name.endswith(LATER)}
        assert later == {"BranchingScore", "Entropy", "LikelihoodGain"}
        assert {name: column for name, column in scores.items() if not name.endswith(LATER)} == other["scores"]
        assert {*scores["LikelihoodGain"]["values"]} == {0.0}
        assert len({*scores[f"LikelihoodGain{LATER}"]["values"]}) > 4
        # One iteration has not changed much.
        assert scores[f"Entropy{LATER}"]["values"] == pytest.approx(scores["Entropy"]["values"], rel=0.2)
        assert scores[f"Entropy{LATER}"] != scores["Entropy"]
    page = (folder / "pilot.md").read_text()
    assert "## What a change of the policy adds" in page
    assert page.count("| `BranchingScore` |") == 2
    assert "## What a change of the policy adds" not in (study / "pilot.md").read_text()


def test_a_plain_reward_and_another_split_are_measured_too(tmp_path, policy_folder):
    folder = tmp_path / "pilot"
    run(
        "pilot", folder, policy_folder, *OPTIONS, f"--out={folder}", "--questions=2", "--split=train",
        "--rollout.reward=FunctionReward", "--rollout.reward.function=tests.rewards.functions:length",
        "--rollout.reward.options={scale: 0.0}",
        "--rollout.scorer=Position", "--rollout.scorer.prefer=late",
    )  # fmt: skip
    page = (folder / "pilot.md").read_text()
    assert "2 questions of the train split" in page
    assert "pass@" not in page
    assert "In 0 of 2 questions the influence differs" in page
    late, early = (
        [value for question in records(folder) for value in question["scores"][name]["values"]]
        for name in ("Position (configured)", "Position")
    )
    assert late == pytest.approx([1.0 - value for value in early])


def refusal(capsys, monkeypatch, policy_folder, *options: str) -> str:
    args = ["appo", "pilot", "--config", CONFIG, *FEW_TOKENS, f"--model.policy={policy_folder}", *OPTIONS, *options]
    monkeypatch.setattr("sys.argv", args)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_folder_of_another_study_is_refused(study, capsys, monkeypatch, policy_folder):
    line = refusal(capsys, monkeypatch, policy_folder, f"--out={study}", "--continuations=5")
    assert "out must hold results of the same specification" in line
    assert "continuations is 4 there, 5 here" in line


def test_a_folder_with_something_else_is_refused(tmp_path, capsys, monkeypatch, policy_folder):
    (tmp_path / "notes.txt").write_text("mine")
    line = refusal(capsys, monkeypatch, policy_folder, f"--out={tmp_path}")
    assert f"out must not hold foreign files, got {tmp_path} without a specification.json" in line


def test_a_later_policy_of_another_vocabulary_is_refused(tmp_path, capsys, monkeypatch, policy_folder):
    other = tmp_path / "other"
    options = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "mlp_size": 64}
    TinyPolicy(WorldConversations(), vocab_size=700, **options).build(other)
    line = refusal(capsys, monkeypatch, policy_folder, f"--out={tmp_path / 'pilot'}", f"--later-policy={other}")
    assert "later_policy must have the " in line
    assert "tokens of model.policy, got 700" in line


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (
            "--later-policy=/nowhere",
            "later_policy must be a Hugging Face model folder with a config.json, got '/nowhere'",
        ),
        ("--trainer.devices=2", "trainer.devices must be 1 for a pilot study, got 2 processes"),
        ("--questions=0", "questions must be at least 1, got 0"),
        ("--continuations=3", "continuations must be at least 4, got 3"),
        ("--influence=tests.scorers.functions:nothing", "influence: function must be importable, got 'tests."),
        ("--influence=tests.scorers.functions:no_function", "influence: function must be importable, got 'tests."),
    ],
)
def test_what_cannot_be_measured_is_refused(option, text, tmp_path, capsys, monkeypatch, policy_folder):
    assert text in refusal(capsys, monkeypatch, policy_folder, f"--out={tmp_path / 'pilot'}", option)
