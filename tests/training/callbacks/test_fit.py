"""Whole runs through the command line, with the real engine and tools and a tiny policy."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from appo.commands import cli
from appo.commands.record.repeat import compared
from appo.monitoring.trajectory_files import read_trajectories
from tests.engines.dropping_engine import DroppingEngine
from tests.rollouts.chat import TEMPLATE
from tests.small_run import run

DROPPING = "--rollout.engine=tests.engines.dropping_engine.DroppingEngine"


def history(folder: Path) -> list[dict[str, float]]:
    """The logged metrics of every iteration."""
    with sorted(folder.glob("csv/version_*/metrics.csv"))[-1].open() as lines:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(
    ("branch_when", "lag", "versions"),
    [
        # Policy versions that sampled what the second iteration trains on; an iteration makes two updates.
        ("iteration", 0, {2}),
        ("minibatch", 0, {2, 3}),
        ("iteration", 1, {0, 2}),
        ("minibatch", 1, {0, 1, 2, 3}),
    ],
)
def test_every_epoch_trains_on_rollouts_of_its_own(tmp_path, policy_folder, branch_when, lag, versions):
    DroppingEngine.num_dropped = 0
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=2", "--rollout.reward=tests.small_run.EvenTokens",
        f"--rollout.branching.when={branch_when}", f"--rollout.sampling.lag={lag}", DROPPING,
    )  # fmt: skip
    assert DroppingEngine.num_dropped >= (2 if branch_when == "iteration" else 4)
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert row["rollout/branches_made"] == row["rollout/branches_wanted"] == 8
        assert row["train/steps_without_signal"] == 0
        assert row["train/grad_norm"] > 0
    # A policy that has changed since it sampled shows in the log-ratios.
    assert (rows[1]["rollout/log_ratio_std"] > 1e-3) == (branch_when == "minibatch" or lag == 1)
    records = list(read_trajectories(folder / "trajectories/iteration_00001.jsonl.zst"))
    assert len(records) == 4 * 6
    assert {version for record in records for version in record["policy_versions"]} == {-1, *versions}
    assert not torch.equal(weights(folder / "policy")["lm_head.weight"], weights(policy_folder)["lm_head.weight"])
    AutoTokenizer.from_pretrained(folder / "policy")
    # The newest is written once, under a name of its own, so that `last.ckpt` is never half of one.
    assert (folder / "checkpoints/last.ckpt").resolve() == folder / "checkpoints/epoch=1.ckpt"


def test_an_engine_keeps_its_weights_where_prompts_may_yet_be_replaced(tmp_path, policy_folder):
    DroppingEngine.num_dropped = 0
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.sampling.replacement_rounds=2",
        "--rollout.reward=tests.small_run.EveryOtherFlat", DROPPING,
    )  # fmt: skip
    assert history(folder)[0]["rollout/prompts_replaced"] > 0
    assert DroppingEngine.num_dropped == 0


@pytest.mark.slow
def test_the_reward_rises_on_a_toy_task(tmp_path, policy_folder):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=12", "--rollout.reward=tests.small_run.EvenTokens",
        "--model.optimizer.lr=0.02", "--data.prompts_per_iteration=8", "--data.prompts_per_minibatch=4",
    )  # fmt: skip
    rewards = [row["rollout/reward_initial_mean"] for row in history(folder)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("lag", "rounds"), [(0, 1), (1, 2)])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path, policy_folder, lag, rounds):
    """With a lag it stops with roots whose trees are yet to grow. Nor does it matter what the engine does meanwhile."""
    options = [
        "--rollout.reward=tests.small_run.EvenTokens", f"--rollout.sampling.lag={lag}",
        f"--rollout.branching.rounds={rounds}", f"--rollout.branching.num_trajectories={4 + 2 * rounds}",
    ]  # fmt: skip
    whole = run("fit", tmp_path / "whole", policy_folder, "--trainer.max_epochs=3", *options)
    stopped = tmp_path / "stopped"
    # Stopped after the first iteration by its budget of tokens, as a user would stop it.
    run("fit", stopped, policy_folder, "--trainer.max_epochs=3", "--rollout.stop_after_tokens=1", *options)
    assert len(history(stopped)) == 1
    run("fit", stopped, policy_folder, "--trainer.max_epochs=3", "--ckpt_path=last", DROPPING, *options)
    assert [row["epoch"] for row in history(stopped)] == [1, 2]
    assert compared(whole, stopped) == [
        "all metrics of 3 iterations are equal, times and memory aside",
        "the weights are equal to the bit",
    ]


@pytest.mark.slow
def test_a_resumed_run_whose_budget_is_spent_only_writes_its_policy(tmp_path, policy_folder):
    options = ["--rollout.reward=tests.small_run.EvenTokens", "--trainer.max_epochs=3", "--rollout.stop_after_tokens=1"]
    folder = run("fit", tmp_path, policy_folder, *options)
    expected = weights(folder / "policy")
    # As if it had been killed between its last checkpoint and its end.
    shutil.rmtree(folder / "policy")
    run("fit", tmp_path, policy_folder, *options, "--ckpt_path=last")
    assert len(list(folder.glob("trajectories/iteration_*"))) == 1
    for name, tensor in weights(folder / "policy").items():
        assert torch.equal(tensor, expected[name]), name


def test_evaluation_cuts_the_distribution_and_training_does_not(tmp_path, policy_folder):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1",
        "--rollout.reward=tests.small_run.EvenTokens", "--rollout.evaluation.samples=2", "--rollout.evaluation.top_k=1",
    )  # fmt: skip
    (path,) = folder.glob("trajectories/validation_*")
    texts = [record["text"] for record in read_trajectories(path)]
    # At temperature 1 the likeliest token is the only one.
    assert texts[::2] == texts[1::2]
    # What engine and trainer call the log-prob of a token is that of one distribution.
    (mismatch,) = (row["rollout/mismatch_max"] for row in history(folder) if "rollout/mismatch_max" in row)
    assert 0.0 < mismatch < 1e-4


def test_rewards_that_are_all_equal_have_no_gradient_and_the_run_goes_on(tmp_path, policy_folder, caplog):
    folder = run("fit", tmp_path, policy_folder, "--trainer.max_epochs=4", "--rollout.reward=tests.small_run.Constant")
    assert [row["train/steps_without_signal"] for row in history(folder)] == [1] * 4
    # Once, by the rules of a healthy run.
    assert caplog.text.count("zero-variance groups: rollout/flat_groups_initial is 1, above 0.6") == 1
    assert all(row["rollout/peak_memory_gib"] > 0.1 for row in history(folder))
    assert "has no gradient: all rewards of its groups are equal" in caplog.text
    for name, tensor in weights(folder / "policy").items():
        assert torch.equal(tensor, weights(policy_folder)[name]), name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--rollout.branching.when=iteration",), "see rollout.branching.when, rollout.sampling.lag"),
        (("--rollout.branching.when=minibatch",), "no step in between had a gradient"),
        (("--rollout.branching.when=iteration", "--rollout.sampling.lag=1"), "no step in between had a gradient"),
    ],
)
def test_an_unchanged_policy_is_told_with_the_reason(tmp_path, policy_folder, caplog, options, reason):
    run(
        "fit", tmp_path, policy_folder, *options, "--trainer.max_epochs=2",
        "--rollout.reward=tests.small_run.Constant", "--rollout.branching.parents=any",
    )  # fmt: skip
    (message,) = [text for text in caplog.messages if "has not changed between sampling and branching" in text]
    assert reason in message


def test_a_policy_that_changes_is_not_warned_of(tmp_path, policy_folder, caplog):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=2", "--rollout.sampling.lag=1",
        "--rollout.branching.when=iteration", "--rollout.reward=tests.small_run.EvenTokens",
    )  # fmt: skip
    assert "has not changed" not in caplog.text
    assert [row["rollout/roots_changed_share"] for row in history(folder)] == [0.0, 1.0]


def test_a_reward_of_several_parts_is_an_overlay_and_failures_are_counted(tmp_path, policy_folder):
    overlay = tmp_path / "reward.yaml"
    overlay.write_text(
        """
        rollout:
          rewards: {on_failure: zero}
          reward:
            class_path: CompositeReward
            init_args:
              parts:
                match: {class_path: ExactMatchReward, init_args: {grading: {no_answer: -0.25}}}
                short: {class_path: OverlongPenalty, init_args: {max_tokens: "${rollout.limits.max_response_tokens}", buffer_tokens: 24}}
                mine: {class_path: FunctionReward, init_args: {function: "tests.rewards.functions:even_length"}}
              weights: {short: 0.5}
        """  # noqa: E501
    )
    folder = run("fit", tmp_path, policy_folder, "--config", str(overlay), "--trainer.max_epochs=1")
    (row,) = history(folder)
    records = list(read_trajectories(folder / "trajectories/iteration_00000.jsonl.zst"))
    judged = [record for record in records if not record["reward_parts"]["reward_failed"]]
    assert row["rollout/reward_failed"] == pytest.approx(1 - len(judged) / len(records))
    assert 0 < len(judged) < len(records)
    for record in judged:
        parts = record["reward_parts"]
        assert record["reward"] == pytest.approx(parts["match"] + 0.5 * parts["short"] + parts["mine"])
    assert row["rollout/short"] == pytest.approx(sum(r["reward_parts"]["short"] for r in records) / len(records))


def test_the_progress_bar_shows_the_iteration_that_has_just_ended(tmp_path, policy_folder, capsys):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--trainer.enable_progress_bar=true",
    )  # fmt: skip
    (row,) = history(folder)
    bars = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("iterations")]
    shown = bars[-1]
    assert "1/1" in shown
    assert f"reward={row['rollout/reward_mean']:.3g}" in shown
    assert "branches=8" in shown
    assert "tokens/s=" in shown


def test_the_bar_of_an_evaluation_counts_batches_and_shows_the_reward_so_far(tmp_path, policy_folder, capsys):
    folder = run(
        "test", tmp_path, policy_folder, "--rollout.reward=tests.small_run.EvenTokens",
        "--data.prompts_per_evaluation_batch=4", "--trainer.enable_progress_bar=true",
    )  # fmt: skip
    mean = json.loads((folder / "test.json").read_text())["test/reward"]
    bars = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("test:")]
    assert "2/2" in bars[-1]
    assert f"reward={mean:.3g}" in bars[-1]


def test_a_policy_that_nothing_changes_before_its_update_is_not_evaluated_and_logged_all_the_same(
    tmp_path, policy_folder
):
    rows, tokens = [], []
    for name, epochs in (("spared", 1), ("evaluated", 2)):
        # A second pass over the rollouts compares with what the policy was before the first.
        folder = run(
            "fit", tmp_path / name, policy_folder,
            "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
            "--rollout.scorer=NoBranching", "--rollout.branching.num_roots=6", "--rollout.advantage=GroupAdvantage",
            "--model.loss=ClippedLoss", "--data.prompts_per_minibatch=4", f"--data.update_epochs={epochs}",
        )  # fmt: skip
        rows += history(folder)
        tokens.append(next(read_trajectories(folder / "trajectories/iteration_00000.jsonl.zst")))
    spared, evaluated = rows
    assert "rollout/log_probs_s" in evaluated
    assert "rollout/log_probs_s" not in spared
    assert "rollout/mismatch_mean" in evaluated
    assert "rollout/mismatch_mean" not in spared
    for row in rows:
        # Engine and trainer have the same weights, whoever computes the log-probs of the trainer.
        assert row["train/sampling_log_ratio"] == pytest.approx(0.0, abs=1e-5)
    assert ["old_log_probs" in record for record in tokens] == [False, True]


def test_a_loss_with_a_reference_starts_at_no_divergence(tmp_path, policy_folder):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--model.loss.kl_coef=0.1", "--data.prompts_per_minibatch=4",
    )  # fmt: skip
    assert history(folder)[0]["train/kl"] == pytest.approx(0.0, abs=1e-6)


def test_mixed_precision_measures_as_it_trains(tmp_path, policy_folder):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--trainer.precision=bf16-mixed", "--data.prompts_per_minibatch=4", "--model.loss.ratio_to=update",
    )  # fmt: skip
    # Measured in float32, the ratio of the first update would begin at 1.000016.
    assert history(folder)[0]["train/ratio"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("command", "split"), [("validate", "validation"), ("test", "test")])
def test_evaluation_writes_metrics_and_trajectories(tmp_path, policy_folder, command, split):
    folder = run(command, tmp_path, policy_folder)
    metrics = json.loads((folder / f"{split}.json").read_text())
    assert {f"{split}/accuracy", f"{split}/tool_calls", f"{split}/response_length"} <= set(metrics)
    assert len(list(read_trajectories(folder / f"trajectories/{split}_00000.jsonl.zst"))) == 6


def test_training_is_validated_every_so_many_iterations(tmp_path, policy_folder):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=2", "--rollout.reward=tests.small_run.EvenTokens",
        "--trainer.check_val_every_n_epoch=2",
    )  # fmt: skip
    assert [row["epoch"] for row in history(folder) if "validation/accuracy" in row] == [1]
    assert len(list(read_trajectories(folder / "trajectories/validation_00001.jsonl.zst"))) == 6


def test_a_file_of_training_questions_is_enough_to_train(tmp_path, policy_folder):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"question": "{i}?", "answer": "me"}}\n' for i in range(4)))
    folder = run(
        "fit", tmp_path / "run", policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--data.source=JsonlQuestions", f"--data.source.train={questions}", "--trainer.check_val_every_n_epoch=1",
        "--data.max_prompt_tokens=480",
    )  # fmt: skip
    assert len(history(folder)) == 1
    (record, *_) = read_trajectories(folder / "trajectories/iteration_00000.jsonl.zst")
    prompt = AutoTokenizer.from_pretrained(policy_folder).decode(record["prompt"]["token_ids"]).replace(" ", "")
    # The policy is told of its tools, in words that the saved configuration holds.
    assert "<python>code</python>:RunsPythoncode" in prompt
    assert "<search>query</search>:" in prompt
    saved = yaml.safe_load(next(folder.rglob("config.yaml")).read_text())
    assert "{tools}" in saved["rollout"]["syntax"]["init_args"]["instructions"]


@pytest.mark.slow
def test_predict_writes_the_trajectories_of_a_data_file_and_a_checkpoint(tmp_path, policy_folder):
    fitted = run(
        "fit", tmp_path / "fit", policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens"
    )
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Who?", "answer": "me"}\n{"question": "Where?", "answer": ["here", "there"]}\n')
    folder = run(
        "predict", tmp_path / "predict", policy_folder, "--data.source=JsonlQuestions",
        f"--data.source.test={questions}", f"--ckpt_path={fitted / 'checkpoints/last.ckpt'}",
        "--data.max_prompt_tokens=480",
    )  # fmt: skip
    records = list(read_trajectories(folder / "trajectories/predict_00000.jsonl.zst"))
    assert [record["prompt"]["question"] for record in records] == ["Who?", "Where?"]
    # The checkpoint's weights sampled, not those of the folder.
    assert {version for record in records for version in record["policy_versions"]} == {-1, 2}


@pytest.mark.slow
def test_rewards_get_columns_of_rows_also_for_what_a_checkpoint_had_sampled_ahead(tmp_path, policy_folder):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"question": "{i}?", "answer": "me", "level": {i}}}\n' for i in range(8)))
    options = [
        "--data.source=JsonlQuestions", f"--data.source.train={questions}", "--data.source.columns=[level]",
        "--rollout.sampling.lag=1", "--rollout.syntax.instructions=null", "--trainer.enable_checkpointing=true",
        "--rollout.reward={class_path: FunctionReward, init_args: {function: 'tests.rewards.functions:easier'}}",
    ]  # fmt: skip
    first = run("fit", tmp_path / "first", policy_folder, "--trainer.max_epochs=2", *options)
    last = f"--ckpt_path={first / 'checkpoints/last.ckpt'}"
    second = run("fit", tmp_path / "second", policy_folder, "--trainer.max_epochs=4", last, *options)
    (record, *_) = read_trajectories(second / "trajectories/iteration_00002.jsonl.zst")
    assert record["reward"] == int(record["prompt"]["question"].removesuffix("?"))
    assert "columns" not in record["prompt"]
    # Before anything is sampled it is known whether rows have what a reward needs.
    with pytest.raises(ValueError, match=r"must get what its parameters name .*, got no column .* for 'level'"):
        run("fit", tmp_path / "third", policy_folder, *options, "--data.source.columns=[]")


def test_predict_needs_no_answers(tmp_path, policy_folder):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Who?"}\n{"question": "Where?", "answer": "here"}\n')
    options = ["--data.source=JsonlQuestions", f"--data.source.test={questions}", "--rollout.syntax.instructions=null"]
    folder = run("predict", tmp_path / "predict", policy_folder, *options)
    who, where = read_trajectories(folder / "trajectories/predict_00000.jsonl.zst")
    assert who["prompt"]["answers"] == []
    assert "reward" not in who
    assert "reward" in where
    with pytest.raises(ValueError, match=r"answer in line 1 of .* must be a text, a number"):
        run("test", tmp_path / "test", policy_folder, *options)


def test_a_file_of_conversations_is_enough_for_supervised_fine_tuning(tmp_path, policy_folder):
    conversations = tmp_path / "conversations.jsonl"
    turns = [{"role": "user", "content": "What is 2+3?"}, {"role": "assistant", "content": "It is 5."}]
    conversations.write_text(json.dumps({"messages": turns}) + "\n")
    cli.run(
        [
            "sft", f"--model.policy={policy_folder}", f"--model.save_to={tmp_path / 'policy'}", "--model.lr=0.01",
            "--data.source=FileConversations", f"--data.source.train={conversations}", "--trainer.max_epochs=3",
            f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
        ]
    )  # fmt: skip
    losses = [row["train/loss"] for row in history(tmp_path) if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert not torch.equal(weights(tmp_path / "policy")["lm_head.weight"], weights(policy_folder)["lm_head.weight"])


def test_a_syntax_of_the_chat_template_tells_the_policy_of_its_tools(tmp_path, policy_folder):
    talking = tmp_path / "policy"
    shutil.copytree(policy_folder, talking)
    (talking / "chat_template.jinja").write_text(TEMPLATE)
    folder = run(
        "fit", tmp_path / "run", talking, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--rollout.syntax=ChatTemplateSyntax", "--rollout.tools=[PythonTool]", "--data.max_prompt_tokens=480",
    )  # fmt: skip
    (record, *_) = read_trajectories(folder / "trajectories/iteration_00000.jsonl.zst")
    prompt = AutoTokenizer.from_pretrained(talking).decode(record["prompt"]["token_ids"]).replace(" ", "")
    assert '"name":"python"' in prompt
    assert '"code":{"type":"string"}' in prompt
