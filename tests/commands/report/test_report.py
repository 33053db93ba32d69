from __future__ import annotations

import json
import sys
from functools import partial

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from appo.commands.cli import run
from appo.commands.report import branched_texts, write_report
from appo.monitoring.trajectory_files import TrajectoryWriter
from appo.policy.text import decode

WORDS = {"[pad]": 0, "who": 1, "is": 2, "it": 3, "ann": 4, "ben": 5}


def record(
    row: int, token_ids: list[int], reward: float, parent: int | None = None, position: int | None = None
) -> dict:
    prompt = {"id": "q", "question": "who?", "token_ids": [1], "answers": ["ann"], "source": ""}
    return {
        "id": row,
        "parent_id": parent,
        "prompt": prompt,
        "token_ids": token_ids,
        "branch_position": position,
        "branch_score": None if position is None else 1.25,
        "reward": reward,
    }


RECORDS = [record(0, [1, 2, 3, 4], 1.0), record(1, [1, 2, 3, 5], 0.0), record(2, [1, 2, 3, 5], 0.0, 0, 2)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[pad]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]")
    wrapped.chat_template = "{{ messages[0]['content'] }}"
    return wrapped


def test_a_branch_is_marked_behind_the_last_shared_token(tokenizer):
    lines = branched_texts(RECORDS, partial(decode, tokenizer), number=1)[0]
    text = "\n".join(lines)
    assert "is it⟦branch 1⟧ann" in text
    assert "branch 1, score 1.25, reward 0.00:" in text
    assert "...ben" in text


def test_branches_of_branches_are_shown_where_they_left(tokenizer):
    tree = [
        record(0, [1, 2, 3, 4, 5, 2], 0.5),
        record(1, [1, 2, 5, 5, 4], 0.0, 0, 1),
        record(2, [1, 2, 3, 4, 3, 3], 0.25, 0, 3),
        record(3, [1, 2, 5, 5, 2, 2], 0.75, 1, 3),
        record(4, [1, 2, 5, 3, 3], 1.0, 1, 2),
        record(5, [1, 2, 5, 3, 4], 0.0, 4, 3),
    ]
    # Its branches lie farther apart than those that left the root above, but not than all of that tree.
    other = [
        {**entry, "prompt": {**entry["prompt"], "id": "r", "question": "who else?"}}
        for entry in (record(6, [1, 4], 0.0), record(7, [1, 4], 0.0, 6, 0), record(8, [1, 4], 0.5, 6, 0))
    ]
    first, second = branched_texts([*tree, *other], partial(decode, tokenizer), number=2)
    titles = [line for line in first if line.endswith(":")]
    assert titles == [
        "reward 0.50:",
        "branch 1, score 1.25, reward 0.00:",
        "branch 1.1, score 1.25, reward 1.00:",
        "branch 1.1.1, score 1.25, reward 0.00:",
        "branch 1.2, score 1.25, reward 0.75:",
        "branch 2, score 1.25, reward 0.25:",
    ]
    texts = [first[first.index(title) + 2] for title in titles]
    assert texts == [
        "is⟦branch 1⟧it ann⟦branch 2⟧ben is",
        "...ben⟦branch 1.1⟧ben⟦branch 1.2⟧ann",
        "...it⟦branch 1.1.1⟧it",
        "...ann",
        "...is is",
        "...it it",
    ]
    assert second[0] == "**who else?** (answer: ann)"


def test_questions_are_shown_once_with_a_root_that_fared_otherwise(tokenizer):
    others = [
        {**entry, "id": 10 + entry["id"], "prompt": {**entry["prompt"], "id": "r", "question": "who else?"}}
        for entry in (record(0, [1, 2, 3, 5], 0.5), record(1, [1, 2, 3, 5], 0.5))
    ]
    branched = [
        record(2, [1, 2, 3, 5], 0.0),
        record(3, [1, 2, 3, 4], 1.0, 2, 2),
        record(4, [1, 2, 3, 5], 0.0, 2, 1),
        record(5, [1, 3, 3, 4], 1.0),
    ]
    first, second = branched_texts([record(0, [1, 2, 3, 5], 0.0), *branched, *others], partial(decode, tokenizer), 3)
    assert first[0] == "**who?** (answer: ann)"
    assert "reward 0.00:" in first
    assert "another root, reward 1.00:" in first
    assert first.index("branch 1, score 1.25, reward 0.00:") < first.index("branch 2, score 1.25, reward 1.00:")
    assert second[0] == "**who else?** (answer: ann)"
    assert "another root, reward 0.50:" in second


def write_run(tmp_path, tokenizer, source):
    """What `appo fit` and the tests before and behind it leave in a folder."""
    folder = tmp_path / "csv/version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,rollout/accuracy,rollout/reward_initial_mean\n0,0.2,0.1\n1,0.6,0.5\n")
    with TrajectoryWriter(tmp_path / "trajectories/iteration_00001.jsonl.zst") as writer:
        writer.write(RECORDS)
    (folder / "config.yaml").write_text("data: {source: {class_path: " + source + "}}\n")
    tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy/config.json").write_text('{"model_type": "llama"}')
    for name, accuracy in (("before", 0.25), ("after", 0.75)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.json").write_text(
            json.dumps({"test/accuracy": accuracy, "test/accuracy/sum": accuracy})
        )


def test_a_report_has_table_picture_and_trajectories(tmp_path, tokenizer):
    write_run(tmp_path, tokenizer, "appo.prompts.WorldQuestions")
    report = write_report(tmp_path, tmp_path / "before", tmp_path / "after").read_text()
    assert "| accuracy | 0.25 | 0.75 |" in report
    assert "| accuracy: sum | 0.25 | 0.75 |" in report
    assert "⟦branch 1⟧" in report
    assert "tokens that decide" not in report
    assert (tmp_path / "reward.png").stat().st_size > 1000


@pytest.mark.parametrize("is_here", [True, False])
def test_a_source_of_the_users_is_looked_for_where_the_command_is_run(tmp_path, tokenizer, monkeypatch, is_here):
    name = f"own_questions_{is_here}".lower()
    write_run(tmp_path, tokenizer, f"{name}.OwnQuestions")
    if is_here:
        source = "from appo.prompts import WorldQuestions\n\n\nclass OwnQuestions(WorldQuestions):\n    pass\n"
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run(["report", "--run", ".", "--before", "before", "--after", "after"])
    report = (tmp_path / "report.md").read_text()
    assert "| accuracy | 0.25 | 0.75 |" in report
    assert ("Not known, since data.source of" in report) == (not is_here)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        write_report(tmp_path, tmp_path, tmp_path)
