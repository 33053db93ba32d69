from __future__ import annotations

import pytest

from appo.commands.report.decisions import OTHER, Decisions, Trees, kinds_of_tokens
from appo.commands.report.records import RunRecords
from appo.environments.base import Decision
from appo.environments.gates import GateDemonstrations, GateProblems
from appo.monitoring.trajectory_files import TrajectoryWriter
from tests.environments.gates.test_gate_turns import as_tokens

DEMONSTRATIONS = GateDemonstrations(
    GateProblems(num_train=20, num_validation=40, num_test=40), wrong_shares={"gates_3": 0.3}
)
BETTER = GateDemonstrations(DEMONSTRATIONS.problems, wrong_shares={"gates_3": 0.0})
VOCABULARY: dict[str, int] = {}


def decode(token_ids):
    texts = list(VOCABULARY)
    return "".join(texts[token_id] for token_id in token_ids)


def record(row, demonstration, parent=None, position=None, advantage=0.5):
    tokens, sampled = as_tokens(demonstration)
    token_ids = [VOCABULARY.setdefault(token, len(VOCABULARY)) for token in tokens]
    return {
        "id": row,
        "parent_id": parent,
        "branch_position": position,
        "prompt": {"id": demonstration.problem.id, "question": demonstration.problem.text},
        "token_ids": token_ids,
        "response_mask": [int(value) for value in sampled],
        "advantages": [advantage * value for value in sampled],
        "tool_calls": [],
        "finish_reason": "eos",
    }


def write_run(folder, demonstrations, name, records=None):
    with TrajectoryWriter(folder / "trajectories" / f"{name}.jsonl.zst") as writer:
        writer.write(records or [record(row, d) for row, d in enumerate(demonstrations.draw("test"))])


def write_config(folder, source):
    (folder / "csv/version_0").mkdir(parents=True)
    (folder / "csv/version_0/config.yaml").write_text(f"data: {{source: {{class_path: {source}}}}}\n")


def test_right_turns_are_counted_gate_by_gate(tmp_path):
    write_config(tmp_path, "appo.prompts.GateQuestions")
    write_run(tmp_path / "before", DEMONSTRATIONS, "test_00000")
    write_run(tmp_path / "after", BETTER, "test_00000")
    write_run(tmp_path, DEMONSTRATIONS, "iteration_00000")
    decisions = Decisions.of(tmp_path, decode)
    RunRecords.read(tmp_path, decisions.add)
    shares, _, trees = decisions.blocks((tmp_path / "before", tmp_path / "after"))
    of_gate = {name: (before, after) for name, before, after in shares.rows}
    for gate in (1, 2, 3):
        before, after = of_gate[f"gate {gate}"]
        assert 0.5 < float(before) < 0.85
        assert float(after) == 1.0
    rows = {row[0]: row[1:] for row in trees.rows}
    assert {*rows} == {OTHER, *(f"gate {gate}, {side}" for gate in (1, 2, 3) for side in ("right", "wrong"))}
    sampled = sum(sum(record(0, d)["response_mask"]) for d in DEMONSTRATIONS.draw("test"))
    gates = 3 * len(DEMONSTRATIONS.draw("test"))
    assert f"{1 - gates / sampled:.1%}" in rows[OTHER]


def test_branches_count_where_their_first_token_stands_and_credit_once():
    def find(trajectory):
        return [Decision(3, "gate 1", trajectory["token_ids"][3] == 1), Decision(5, "gate 2", True)]

    def saved(row, token_ids, advantage, parent=None, position=None):
        mask = [0, 1, 1, 1, 0, 1]
        return {
            "id": row,
            "parent_id": parent,
            "branch_position": position,
            "token_ids": token_ids,
            "response_mask": mask,
            "advantages": [advantage * value for value in mask],
        }

    first = [
        saved(0, [9, 9, 9, 1, 9, 9], 0.25),
        saved(1, [9, 9, 9, 0, 9, 9], -1.0, 0, 2),
        saved(2, [9, 9, 9, 0, 9, 9], 0.0, 1, 4),
    ]
    second = [saved(0, [9, 9, 9, 1, 9, 9], 0.5), saved(1, [9, 9, 8, 1, 9, 9], 1.0, 0, 1)]
    assert kinds_of_tokens(first[1], find) == [None, OTHER, OTHER, "gate 1, wrong", None, "gate 2, right"]
    trees = Trees()
    trees.add(first, find)
    trees.add(second, find)
    assert trees.branched == {"gate 1, right": 1, "gate 2, right": 1, OTHER: 1}
    assert trees.sampled == {OTHER: 2 + 0 + 0 + 2 + 1, "gate 1, right": 3, "gate 1, wrong": 1, "gate 2, right": 5}
    assert trees.advantages["gate 1, wrong"] == [-1.0]
    assert trees.advantages["gate 2, right"] == [0.25, -1.0, 0.5, 1.0]


def test_a_source_that_knows_no_decisions_has_no_blocks(tmp_path):
    write_config(tmp_path, "appo.prompts.WorldQuestions")
    assert Decisions.of(tmp_path, decode).blocks(None) == []


def test_a_source_that_is_not_to_be_had_is_named_and_leaves_the_rest_of_the_report(tmp_path):
    write_config(tmp_path, "nowhere.Questions")
    (reason,) = Decisions.of(tmp_path, decode).blocks(None)
    assert reason.text.startswith("The tokens that decide are not known, since data.source of ")
    assert "must be a source of questions" in reason.text


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^run must be the folder of an appo fit: no config\.yaml of a run in"):
        Decisions.of(tmp_path, decode)
