"""What is logged of branches and trees, on a scripted collection that can be counted by hand."""

from __future__ import annotations

import pytest

from appo.monitoring.rollout_metrics import column_metrics, rollout_columns
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.collecting import collect, make_branching, make_collector, make_prompts
from tests.rollouts.conftest import ScriptedEngine, runner, tokenizer  # noqa: F401 - fixtures


def test_branches_and_trees_are_told_apart(tokenizer, runner):  # noqa: F811
    # The best position of each root is its last letter, which a branch keeps.
    script = {"P": f"bab{EOS}", "Pbab": [EOS, f"a{EOS}"]}
    engine = ScriptedEngine(tokenizer, script)
    branching = make_branching(1, 2, siblings=2, train_on="both", min_remaining=0.0)
    collector = make_collector(engine, runner, branching)
    data = collect(collector, make_prompts(tokenizer, "P"))
    metrics = column_metrics(rollout_columns([data]))
    # "bab" three times: the root, its echo with the same reward of 1, and a branch with one more "a".
    assert metrics["branch_echo"] == 0.5
    assert metrics["branch_contrast"] == pytest.approx((0 - 1) / 2)
    assert metrics["flat_trees"] == 0.0
    assert metrics["branch_in_answer"] == 0.0
    assert metrics["trained_share"] == 1.0
    # Scores are the positions 1 to 4: the tenth of four tokens is one, with 16 of 30.
    assert metrics["score_concentration"] == pytest.approx(16 / 30)


@pytest.mark.parametrize(("train_on", "share"), [("roots", 4 / 7), ("suffixes", 5 / 7), ("both", 1.0)])
def test_tokens_that_are_sampled_and_not_trained_show(tokenizer, runner, train_on, share):  # noqa: F811
    engine = ScriptedEngine(tokenizer, {"P": f"bbb{EOS}", "Pbbb": EOS, "Pbb": f"b{EOS}"})
    collector = make_collector(engine, runner, make_branching(1, 2, train_on=train_on, min_remaining=0.0))
    data = collect(collector, make_prompts(tokenizer, "P"))
    metrics = column_metrics(rollout_columns([data]))
    # 4 tokens of the root, 1 and 2 of the branches; suffixes leave out the two before the first point.
    assert metrics["trained_share"] == pytest.approx(share)
    assert metrics["branch_echo"] == 1.0
    assert metrics["flat_trees"] == 1.0


def test_branches_that_leave_inside_the_answer_are_counted(tokenizer, runner):  # noqa: F811
    engine = ScriptedEngine(tokenizer, {"P": f"a<answer>bb</answer>{EOS}", "Pa<answer>b": EOS, "Pa<answer>": EOS})
    collector = make_collector(engine, runner, make_branching(1, 2, split="resample", min_remaining=0.0), room=40)
    data = collect(collector, make_prompts(tokenizer, "P"))
    assert column_metrics(rollout_columns([data]))["branch_in_answer"] == 1.0
