"""What a step makes of single tokens finds back to their trajectories, and into the files of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from appo.monitoring.trajectory_files import read_trajectories
from appo.training.callbacks.recording import _update_columns
from appo.training.token_record import TokenRecord
from tests.small_run import metrics, run


def test_values_find_back_to_their_trajectories(batch):
    numbered = replace(batch, row=torch.arange(10, 16))
    record = TokenRecord()
    for micro in numbered.micro_batches(12):
        record.add(micro, {"ids": micro.token_ids.double()})
    values = record.pop()
    assert sorted(values) == list(range(10, 16))
    for row in range(6):
        length = int(batch.lengths[row])
        expected = batch.token_ids[row, :length].where(batch.response_mask[row, :length], 0).float()
        torch.testing.assert_close(values[10 + row]["ids"], expected)
    assert record.pop() == {}


def test_rows_that_nobody_numbered_are_passed_over(batch):
    record = TokenRecord()
    record.add(batch, {"ids": batch.token_ids})
    assert record.pop() == {}


def saved(folder):
    return list(read_trajectories(next(folder.glob("trajectories/iteration_00000.jsonl.zst"))))


@pytest.mark.slow
def test_the_shares_of_saved_tokens_add_up_to_the_loss(small_run):
    records = saved(small_run)
    prompts = list(dict.fromkeys(record["prompt"]["id"] for record in records))
    losses = []
    for start in (0, 2):  # two steps of two prompts
        rows = [record for record in records if record["prompt"]["id"] in prompts[start : start + 2]]
        rows = [record for record in rows if "loss_shares" in record]
        num_trained = sum(weight > 0.0 for record in rows for weight in record["importance_weights"])
        assert num_trained > 0
        losses.append(sum(share for record in rows for share in record["loss_shares"]) / num_trained)
    (row,) = metrics(small_run)
    assert sum(losses) / 2 == pytest.approx(float(row["train/policy_loss"]), abs=2e-5)
    assert all(isinstance(record["evaluated_by"], int) for record in records if "old_log_probs" in record)


@pytest.mark.slow
def test_a_brief_file_has_no_more_than_the_scores(tmp_path, policy_folder):
    reward = "--rollout.reward=tests.small_run.EvenTokens"
    run("fit", tmp_path, policy_folder, "--trainer.max_epochs=1", reward, "--rollout.save_trajectories=brief")
    for record in saved(tmp_path):
        assert not {"importance_weights", "loss_shares"} & record.keys()
    assert "scores" in saved(tmp_path)[0]


def test_entropies_of_an_update_are_kept_where_no_policy_had_evaluated_the_tokens_and_it_is_told_which_it_trained():
    weights, entropies = torch.tensor([0.0, 1.23456, float("inf")]), torch.tensor([0.0, 2.0, 0.5])
    update = {"importance_weights": weights, "entropies": entropies}
    assert _update_columns(update, is_evaluated=True) == {"importance_weights": [0.0, 1.235, None]}
    assert _update_columns(update, is_evaluated=False)["entropies"] == [0.0, 2.0, 0.5]
    assert _update_columns({"entropies": entropies}, is_evaluated=False) == {}
