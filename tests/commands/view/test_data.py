"""What the page is told of a run."""

from __future__ import annotations

import gzip
import json
from itertools import accumulate
from pathlib import Path

import pytest

from appo.commands.view.curves import curves
from appo.commands.view.run import Run, packed
from appo.commands.view.steps import steps_of
from appo.commands.view.texts import TokenTexts
from appo.commands.view.values import TOKEN_VALUES
from appo.policy.loading import load_tokenizer
from tests.commands.view.runs import family, write_file, write_run


def by_id(page):
    return {node["id"]: node for node in page["trajectories"]}


def words(page, node):
    return [page["texts"][number] for number in node["tokens"]]


def test_a_branch_has_the_tokens_that_it_does_not_share(run_folder):
    page = Run(run_folder).tree("iteration-0", 0)
    nodes = by_id(page)
    assert [words(page, nodes[row]) for row in range(4)] == [list("abRcd"), list("ab"), list("xSe"), list("f")]
    assert [nodes[row]["start"] for row in range(4)] == [0, 0, 1, 3]
    assert [nodes[row]["parent"] for row in range(4)] == [None, None, 0, 2]
    assert nodes[0]["given"] == [[2, 3]]
    assert nodes[3]["given"] == []
    assert page["prompt"]["text"] == page["prompt"]["question"] == "who is it?"


def test_a_call_belongs_to_the_trajectory_that_made_it(run_folder):
    nodes = by_id(Run(run_folder).tree("iteration-0", 0))
    assert [[(call["tool"], call["position"]) for call in nodes[row]["calls"]] for row in range(4)] == [
        [("search", 2)], [], [("python", 2)], [],
    ]  # fmt: skip


def test_every_token_has_its_values(run_folder):
    values = by_id(Run(run_folder).tree("iteration-0", 0))[0]["values"]
    assert values == {
        "entropy": [0.25, 2, None, 1, 0.75],
        "gain": [1, 1.12, None, 0.875, 1],
        "score": [-1, 3, None, 1, 0.5],
        "advantage": [2, 2, None, 1.5, 1],
        # Of the ending, which no branch shares, it is 1.
        "credit": [1, 1, None, 0.5, 0],
        "log_ratio": [0, 0.25, None, -0.5, 0],
        "surprisal": [0.5, 0.5, None, 0.5, 0.5],
        "version": [0, 0, None, 0, 0],
    }
    assert len({value.name for value in TOKEN_VALUES}) >= 8


def test_a_log_ratio_is_0_where_the_policy_evaluated_what_it_had_sampled(tmp_path, policy_folder, tokenizer):
    records = [{**record, "evaluated_by": 0} for record in family(tokenizer)]
    page = Run(write_run(tmp_path / "r", policy_folder, {"iteration_00000": records})).tree("iteration-0", 0)
    assert by_id(page)[0]["values"]["log_ratio"] == [0, 0, None, 0, 0]


def test_what_the_update_made_of_tokens_is_known_of_those_that_it_trained(tmp_path, policy_folder, tokenizer):
    records = family(tokenizer)
    start = len(records[0]["prompt"]["token_ids"])
    for record, shares in zip(records, ([0.0, -1.5, 0.0, 0.5, 0.0], [0.0, 0.25]), strict=False):
        weights = [float(i > 0 and i != 2) for i in range(len(shares))]
        record |= {"importance_weights": [0.0] * start + weights, "loss_shares": [0.0] * start + shares}
    # No policy had evaluated it before: its entropies are those of the update.
    records[1]["entropies"] = [0.0] * start + [0.0, 1.25]
    nodes = by_id(Run(write_run(tmp_path / "r", policy_folder, {"iteration_00000": records})).tree("iteration-0", 0))
    assert nodes[0]["values"]["weight"] == [None, 1, None, 1, 1]
    assert nodes[0]["values"]["loss"] == [None, -1.5, None, 0.5, 0]
    assert nodes[0]["values"]["entropy"] == [0.25, 2, None, 1, 0.75]
    assert nodes[1]["values"]["entropy"] == [None, 1.25]


def test_the_token_that_the_scorer_chose_is_told(run_folder, tmp_path, policy_folder, tokenizer):
    nodes = by_id(Run(run_folder).tree("iteration-0", 0))
    # Drawn anew: the branch begins at the token of the score 3.0, the second one of its parent.
    assert (nodes[2]["chosen"], nodes[2]["start"]) == (1, 1)
    records = family(tokenizer)
    records[2]["branch_score"] = -1.0  # that of the last shared token, which was kept
    kept = by_id(Run(write_run(tmp_path / "kept", policy_folder, {"iteration_00000": records})).tree("iteration-0", 0))
    assert (kept[2]["chosen"], kept[2]["start"]) == (0, 1)


def test_what_is_no_branch_point_has_its_reasons(run_folder):
    page = Run(run_folder).tree("iteration-0", 0)

    def reasons(row):
        names, bits = page["reasons"], by_id(page)[row]["excluded"]
        return [[name for i, name in enumerate(names) if each >> i & 1] for each in bits]

    assert reasons(0) == [["entropy below 0.5"], [], [], [], ["last token"]]
    assert "excluded" not in by_id(page)[1]  # it was not scored
    closed = {row: node["closed"] for row, node in by_id(page).items()}
    assert closed[0] == ""
    equal = "have equal rewards" in closed[1]
    assert not equal


def test_roots_of_equal_rewards_have_no_branches_and_it_is_said(tmp_path, policy_folder, tokenizer):
    records = [{**record, "reward": 1.0} for record in family(tokenizer)]
    page = Run(write_run(tmp_path / "r", policy_folder, {"iteration_00000": records})).tree("iteration-0", 0)
    assert all("equal rewards" in node["closed"] for node in page["trajectories"])


def test_options_of_another_version_leave_all_else_to_be_seen(run_folder):
    config = run_folder / "csv/version_0/config.yaml"
    config.write_text(config.read_text().replace("min_entropy", "entropy_of_old"))
    page = Run(run_folder).tree("iteration-0", 0)
    assert page["reasons"] == []
    assert "entropy_of_old" in page["unknown"]


def test_lists_know_what_filters_ask_for(run_folder):
    index = Run(run_folder).index("iteration-1")
    assert [prompt["id"] for prompt in index["prompts"]] == ["r", "q"]
    assert [(each["reward"], each["length"], each["finish"]) for each in index["prompts"][0]["trajectories"]] == [
        (1.0, 5, "eos"), (0.0, 2, "length"), (0.0, 4, "eos"), (1.0, 4, "eos"),
    ]  # fmt: skip
    assert index["prompts"][0]["trajectories"][2]["failures"] == ["timeout"]
    assert index["prompts"][0]["trajectories"][0]["tools"] == ["search"]


def test_a_question_knows_the_steps_that_ask_it(run_folder):
    assert Run(run_folder).asked() == {"q": ["iteration-0", "iteration-1"]}


def test_steps_stand_in_the_order_of_time_with_the_files_of_all_processes(tmp_path, policy_folder, tokenizer):
    names = [
        "test_00002",
        "validation_00001",
        "iteration_00001_rank_00001",
        "iteration_00001_rank_00000",
        "iteration_00000",
    ]
    folder = write_run(tmp_path / "r", policy_folder, {name: family(tokenizer) for name in names})
    run = Run(folder)
    assert [step.key for step in run.steps()] == ["iteration-0", "iteration-1", "validation-1", "test-2"]
    assert run.last_iteration().key == "iteration-1"
    (prompt,) = run.index("iteration-1")["prompts"]
    assert [(each["id"], each["parent"]) for each in prompt["trajectories"]] == [
        (0, None), (1, None), (2, 0), (3, 2), (4, None), (5, None), (6, 4), (7, 6),
    ]  # fmt: skip


def test_a_run_that_trains_is_read_anew(run_folder, tokenizer):
    run = Run(run_folder)
    before = run.version()
    assert len(run.index("iteration-1")["prompts"]) == 2
    write_file(run_folder, "iteration_00002", family(tokenizer))
    assert run.version() != before
    write_file(run_folder, "iteration_00001", family(tokenizer))
    assert len(run.index("iteration-1")["prompts"]) == 1
    assert run.asked() == {"q": ["iteration-0", "iteration-1", "iteration-2"]}


def test_what_is_not_public_keeps_its_text_to_itself(tmp_path, policy_folder, tokenizer):
    from appo.monitoring.trajectory_files import without_text

    records = [without_text(record) for record in family(tokenizer)]
    run = Run(write_run(tmp_path / "r", policy_folder, {"test_00000": records}))
    page = run.tree("test-0", 0)
    assert page["texts"] == ["·"]
    assert page["prompt"] == {"id": "q", "question": None, "answers": None, "source": "s", "text": None}
    assert len(by_id(page)[0]["values"]["entropy"]) == len(by_id(page)[0]["tokens"]) == 5


def test_a_character_of_several_tokens_stands_at_the_last_of_them(tokenizer):
    text = "<é日>"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(token_ids) == 7
    texts = TokenTexts(tokenizer)
    assert texts(token_ids) == ["<", "", "é", "", "", "日", ">"]
    # What never becomes a character is shown as such, and what follows is not lost.
    assert texts([token_ids[1], token_ids[0]]) == ["�", "<"]
    assert list(accumulate(texts(token_ids)))[-1] == text


def test_curves_have_gaps_where_a_metric_was_not_logged():
    drawn = curves(
        [
            {"epoch": 0.0, "rollout/accuracy": 0.25, "rollout/sampling_s": 2.0},
            {"epoch": 1.0, "validation/accuracy": 0.5},
        ]
    )
    assert drawn["x"] == [0, 1]
    accuracy = next(chart for chart in drawn["charts"] if chart["title"] == "Accuracy")
    assert accuracy["lines"] == [{"label": "training", "y": [0.25, None]}, {"label": "validation", "y": [None, 0.5]}]
    phases = next(chart for chart in drawn["charts"] if chart["title"] == "Time by phase")
    assert [line["label"] for line in phases["lines"]] == ["sampling"]


def test_numbers_are_short(run_folder, tokenizer, tmp_path, policy_folder):
    records = family(tokenizer)
    start = len(records[0]["prompt"]["token_ids"])
    records[0]["entropies"][start:] = [0.123456789, 1234.5678, 0.0, 1e-8, 2.0000001]
    run = Run(write_run(tmp_path / "r", policy_folder, {"iteration_00000": records}))
    assert by_id(run.tree("iteration-0", 0))[0]["values"]["entropy"] == [0.123, 1235, None, 1e-8, 2]


def test_data_are_packed_alike_whenever_that_is_done(run_folder):
    page = Run(run_folder).tree("iteration-0", 0)
    assert packed(page) == packed(page)
    assert json.loads(gzip.decompress(packed(page))) == page


@pytest.mark.parametrize("key", ["iteration-9", "validation-0"])
def test_a_step_that_is_not_there_is_refused(run_folder, key):
    with pytest.raises(KeyError):
        Run(run_folder).index(key)
    with pytest.raises(KeyError):
        Run(run_folder).tree("iteration-0", 9)


def test_a_folder_without_trajectories_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run must be the folder .*save_trajectories"):
        steps_of(tmp_path)


def test_a_tokenizer_that_is_nowhere_is_asked_for(tmp_path, tokenizer):
    folder = write_run(tmp_path / "r", tmp_path / "gone", {"iteration_00000": family(tokenizer)})
    with pytest.raises(ValueError, match="--policy"):
        Run(folder)


def test_a_policy_that_is_yet_to_be_written_is_not_asked_for_at_the_hub(run_folder, monkeypatch):
    asked = []

    def load(policy):
        asked.append(policy)
        return load_tokenizer(policy)

    monkeypatch.setattr("appo.commands.view.texts.load_tokenizer", load)
    monkeypatch.chdir(run_folder.parent)
    Run(Path("run"))
    assert asked[0] == str(run_folder / "policy")
    assert len(asked) == 2


@pytest.mark.slow
def test_a_run_of_the_command_line_can_be_seen(small_run):
    run = Run(small_run)
    (step,) = [step for step in run.steps() if step.stage == "iteration"]
    index = run.index(step.key)
    assert len(index["prompts"]) == 4
    page = run.tree(step.key, 0)
    assert {"entropy", "gain", "score", "advantage", "credit", "log_ratio"} <= page["trajectories"][0]["values"].keys()
    assert page["unknown"] == ""
    assert [chart["title"] for chart in run.overview()["curves"]["charts"]][:2] == ["Reward", "Accuracy"]
