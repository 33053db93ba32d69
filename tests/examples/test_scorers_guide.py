"""The examples of docs/scorers.md, word by word, and whether it names every scorer."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoTokenizer

from appo import APPOModule, RolloutCallback, RolloutDataModule
from appo.monitoring.trajectory_files import read_trajectories
from appo.prompts import WorldQuestions
from appo.rollouts import Branching, Limits
from appo.scorers import SCORERS, as_scorer
from tests.scorers.contexts import context_of, log_prob
from tests.small_run import EvenTokens

GUIDE = Path(__file__).parents[2] / "docs/scorers.md"


@pytest.fixture(scope="module")
def names() -> dict:
    """What the examples define."""
    found: dict = {"__name__": "guide"}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(code, str(GUIDE), "exec", dont_inherit=True), found)
    return found


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_is_listed_once_and_the_guide_knows_which_read_log_probs(name):
    (row,) = re.findall(rf"^\| `{name}` \|.*$", GUIDE.read_text(), re.MULTILINE)
    assert row.split("|")[3].strip().startswith("yes") == SCORERS[name].reads_log_probs


@pytest.mark.parametrize("name", ["digits", "Surprise", "on_topic"])
def test_an_example_chooses_branch_points_of_a_run(name, names, tmp_path, policy_folder):
    scorer = names[name](floor=0.5) if name == "Surprise" else names[name]
    rollout = RolloutCallback(
        scorer=scorer,
        reward=EvenTokens(),
        branching=Branching(num_trajectories=4, num_roots=2, exclude=()),
        limits=Limits(max_response_tokens=48),
    )
    settings = {"max_epochs": 1, "default_root_dir": tmp_path, "accelerator": "cpu", "enable_progress_bar": False}
    data = RolloutDataModule(WorldQuestions(), prompts_per_iteration=4, prompts_per_minibatch=2, max_prompt_tokens=64)
    L.Trainer(callbacks=[rollout], logger=False, enable_model_summary=False, **settings).fit(
        APPOModule(str(policy_folder)), data
    )
    records = list(read_trajectories(tmp_path / "trajectories/iteration_00000.jsonl.zst"))
    branches = [record for record in records if record["branch_position"] is not None]
    assert len(branches) == 8
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    for record in branches:
        # The chosen token is drawn anew: the branch shares what stands before it.
        parent, position = records[record["parent_id"]], record["branch_position"] + 1
        if name == "digits":
            assert record["branch_score"] == tokenizer.decode([parent["token_ids"][position]]).strip().isdigit()
        elif name == "Surprise":
            assert record["branch_score"] == pytest.approx(-parent["old_log_probs"][position])
    assert any(record["branch_score"] > 0 for record in branches)


def test_the_class_prefers_what_lies_above_its_floor(batch, names):
    scores = names["Surprise"](floor=0.5)(batch, context_of(batch))
    assert torch.equal(scores.preferred, batch.response_mask & (batch.old_log_probs <= -0.5))


def test_the_question_is_left_out_by_hand(batch, names):
    values = as_scorer(names["on_topic"])(batch, context_of(batch)).values
    for row, position in batch.response_mask.nonzero().tolist():
        start = int(batch.prompt_lengths[row]) - 1
        alone = log_prob(batch.token_ids[row, start:].tolist(), position - start)
        assert values[row, position].item() == pytest.approx(
            batch.old_log_probs[row, position].item() - alone, abs=1e-5
        )
