"""The paper's Algorithm 1 in one file: it learns, and computes what the framework does on the same trajectories."""

from __future__ import annotations

import ast
import json
import random
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from appo.advantages import DualGroupAdvantage
from appo.commands import cli
from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate
from appo.core.trajectory import NOT_SAMPLED, BranchPoint, Prompt, Trajectory
from appo.losses import ProceduralLoss
from appo.monitoring.trajectory_files import Record, read_trajectories
from appo.rollouts import Branching, CandidateFilter
from appo.rollouts.branching import choose_branch_points
from appo.scorers import BatchContext, BranchingScore
from examples import appo_in_one_file as one_file
from tests.examples.calculator import make_tokenizer
from tests.small_run import metrics

pytestmark = pytest.mark.slow  # a policy is trained from nothing

FILE = Path(one_file.__file__)
QUESTIONS = [f"{a}+{b}+{12 - a - b}=" for a in (1, 3, 5, 7) for b in (2, 4)]
ROWS = [question for question in QUESTIONS[:4] for _ in range(one_file.NUM_ROOTS)]
CONFIG = str(FILE.parents[1] / "configs/appo_paper.yaml")
PRESET = yaml.safe_load(Path(CONFIG).read_text())
BRANCHING = Branching(**PRESET["rollout"]["branching"])


def component(options: dict[str, Any], kind: type) -> Any:
    """A component as the preset makes it."""
    assert options["class_path"] == kind.__name__
    return kind(**options["init_args"])


SCORE = component(PRESET["rollout"]["scorer"], BranchingScore)
ADVANTAGE = component(PRESET["rollout"]["advantage"], DualGroupAdvantage)
LOSS = component(PRESET["model"]["loss"], ProceduralLoss)


def test_the_file_has_the_budget_of_the_preset():
    assert BRANCHING.num_roots == one_file.NUM_ROOTS
    assert BRANCHING.num_branches == one_file.NUM_ROOTS * one_file.NUM_BEST


def test_the_file_stands_alone_and_is_short():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 250
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_it_learns_from_nothing():
    done = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True)
    rewards = [float(value) for value in re.findall(r"reward (\d\.\d+)", done.stdout)]
    assert len(rewards) == 12
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.25


@pytest.fixture(scope="module")
def sampler() -> PreTrainedModel:
    """A policy that knows the task, in double precision: a difference is one of the method, not of rounding."""
    random.seed(0)
    torch.manual_seed(0)
    return one_file.make_policy().double()


def changed(sampler: PreTrainedModel, distance: float) -> PreTrainedModel:
    """What earlier mini-batches have made of it."""
    policy = deepcopy(sampler)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += distance * torch.randn_like(parameter)
    return policy


@pytest.fixture(scope="module")
def policy(sampler) -> PreTrainedModel:
    return changed(sampler, 0.01)


@pytest.fixture(scope="module")
def roots(sampler) -> list[one_file.Trajectory]:
    torch.manual_seed(1)
    return one_file.rollout(sampler, list(map(one_file.encode, ROWS)))


def as_trajectory(tokens: one_file.Trajectory, origin: BranchPoint | None = None) -> Trajectory:
    question = one_file.decode(tokens).partition("=")[0] + "="
    prompt = Prompt(question, question, tuple(token.id for token in one_file.encode(question)), ())
    is_sampled = torch.tensor([token.is_sampled for token in tokens])
    return Trajectory(
        prompt=prompt,
        token_ids=torch.tensor([token.id for token in tokens]),
        response_mask=is_sampled,
        behavior_log_probs=torch.tensor([token.log_prob for token in tokens], dtype=torch.float64),
        policy_versions=torch.where(is_sampled, 0, NOT_SAMPLED),
        segments=(),
        tool_calls=(),
        finish_reason="eos",
        origin=origin,
    )


def evaluated(policy: PreTrainedModel, roots: list[one_file.Trajectory], version: int = 1) -> TrajectoryBatch:
    """The roots as the framework has them, with log-probs and entropies that the file has computed."""
    batch = collate([as_trajectory(root) for root in roots])
    log_probs, entropies = (
        x.detach().where(batch.response_mask, 0.0) for x in one_file.evaluate(policy, batch.token_ids)
    )
    batch = replace(batch, old_log_probs=batch.old_log_probs.double(), entropies=batch.entropies.double())
    return batch.evaluated(torch.arange(len(batch)), log_probs, entropies, version)


def log_ratio_of(batch: TrajectoryBatch) -> Tensor:
    return batch.old_log_probs - batch.behavior_log_probs


def points_of(batch: TrajectoryBatch, roots: list[one_file.Trajectory], is_changed: bool) -> list[tuple[int, int]]:
    gain = one_file.likelihood_gain(log_ratio_of(batch))
    scores = one_file.branching_scores(gain, batch.entropies, batch.response_mask, is_changed)
    return one_file.choose_branch_points(roots, scores)


@pytest.mark.parametrize("is_changed", [False, True])
def test_branching_scores(policy, roots, is_changed):
    batch = evaluated(policy, roots, version=int(is_changed))
    ours = SCORE(batch, BatchContext(torch.Generator()))
    gain = one_file.likelihood_gain(log_ratio_of(batch))
    scores = one_file.branching_scores(gain, batch.entropies, batch.response_mask, is_changed)
    assert ours.preferred is None
    torch.testing.assert_close(scores, ours.values)
    assert 4 < (gain[batch.response_mask] == 1.0).sum() < batch.response_mask.sum() - 4
    assert (gain[batch.response_mask] == 1.2).any()
    if is_changed:
        torch.testing.assert_close(gain, ours.factors["likelihood_gain"])


@pytest.mark.parametrize("is_changed", [False, True])
def test_branch_points(policy, roots, is_changed):
    batch = evaluated(policy, roots, version=int(is_changed))
    trajectories = [as_trajectory(root) for root in roots]
    scores = SCORE(batch, BatchContext(torch.Generator()))
    allowed = CandidateFilter(make_tokenizer(), BRANCHING.exclude)(batch)
    budgets = {trajectory.prompt.id: BRANCHING.num_branches for trajectory in trajectories}
    parents = torch.ones(len(roots), dtype=torch.bool)
    ours = choose_branch_points(scores, allowed, parents, batch, trajectories, BRANCHING, budgets)
    row_of = {id(trajectory): row for row, trajectory in enumerate(trajectories)}
    points = points_of(batch, roots, is_changed)
    # The framework names the last token that a branch shares, the file the first that it draws anew.
    assert sorted((row, t - 1) for row, t in points) == sorted(
        (row_of[id(point.trajectory)], point.position) for point in ours
    )
    assert all(roots[row][t].is_sampled for row, t in points)
    number = [sum(row == other for other, _ in points) for row in range(len(roots))]
    assert max(number) == one_file.NUM_BEST
    assert number.count(one_file.NUM_BEST) > len(roots) // 2


def test_a_root_that_is_too_short_has_fewer_branch_points():
    roots = [[*one_file.encode("1+2+3="), *[one_file.Token(one_file.END, True)] * 3]] * 2
    scores = torch.full((2, 9), float("-inf"))
    scores[:, 6:] = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 3.0]])
    assert one_file.choose_branch_points(roots, scores) == [(0, 7), (0, 6), (1, 6), (1, 7)]


@pytest.mark.parametrize(
    ("of_roots", "of_branches"),
    [
        ([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1], [[1, 1, 0, 0, 1], [1, 0, 1], [0, 0, 0, 0]]),
        ([1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1], [[0, 0], [], [1, 0, 0]]),
    ],
)
def test_base_advantages(of_roots, of_branches):
    def ended(question: str, is_right: int) -> one_file.Trajectory:
        answer = one_file.encode("12<end>" if is_right else "3<end>")
        return [*one_file.encode(question), *(token._replace(is_sampled=True) for token in answer)]

    questions = QUESTIONS[:3]
    roots = [ended(questions[row // one_file.NUM_ROOTS], is_right) for row, is_right in enumerate(of_roots)]
    owners = [number for number, ends in enumerate(of_branches) for _ in ends]
    branches = [ended(questions[number], is_right) for number, ends in enumerate(of_branches) for is_right in ends]
    ours = [as_trajectory(root) for root in roots]
    ours += [
        as_trajectory(branch, BranchPoint(ours[number * one_file.NUM_ROOTS], 5, 0.0))
        for number, branch in zip(owners, branches, strict=True)
    ]
    batch = collate(ours, [*map(float, of_roots), *(float(end) for ends in of_branches for end in ends)])
    advantages = one_file.base_advantages(roots, branches, torch.tensor(owners))
    torch.testing.assert_close(advantages, ADVANTAGE.by_row(batch)[: len(roots)])
    assert advantages.unique().numel() > 3


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.5])
def test_loss_and_its_gradient(policy, roots, spread):
    batch = evaluated(policy, roots)
    mask = batch.response_mask
    torch.manual_seed(4)
    base, noise = torch.randn(len(roots)).double(), spread * torch.randn(mask.shape)
    num_trajectories = BRANCHING.num_trajectories * len(roots) // one_file.NUM_ROOTS
    batch = replace(
        batch,
        advantages=base[:, None].where(mask, 0.0),
        behavior_log_probs=batch.behavior_log_probs + noise,
        num_tokens=int(mask.sum()),
        num_rows=len(batch),
        num_trajectories=num_trajectories,
    )
    log_probs, entropies = one_file.evaluate(policy, batch.token_ids)
    log_ratio = (log_probs - batch.behavior_log_probs).where(mask, 0.0)
    gain = one_file.likelihood_gain(log_ratio.detach())
    loss = one_file.policy_loss(log_ratio, base, gain, mask, num_trajectories)
    ours, logged = LOSS(log_probs, entropies, batch)
    torch.testing.assert_close(loss, ours, rtol=1e-6, atol=0.0)
    gradient, our_gradient = (torch.autograd.grad(x, policy.parameters(), retain_graph=True) for x in (loss, ours))
    torch.testing.assert_close(gradient, our_gradient, rtol=1e-5, atol=1e-8)  # its weights are float32
    for event in ("clip_fraction_high", "clip_fraction_low"):
        assert spread < 1.5 or logged[event] > 0, event


def tokens_of(record: Record) -> one_file.Trajectory:
    columns = (record["token_ids"], map(bool, record["response_mask"]), record["behavior_log_probs"])
    return [one_file.Token(*token) for token in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def fit(sampler, tmp_path_factory) -> Path:
    """The folder of a run of `configs/appo_paper.yaml` over one iteration of two mini-batches, with the file's task."""
    folder = tmp_path_factory.mktemp("fit")
    policy = deepcopy(sampler)
    policy.generation_config.eos_token_id = policy.config.eos_token_id = one_file.END
    policy.save_pretrained(folder / "policy")
    make_tokenizer().save_pretrained(folder / "policy")
    rows = [json.dumps({"question": question, "answer": "12"}) for question in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(rows))
    cli.run(
        [
            "fit", "--config", CONFIG, f"--model.policy={folder / 'policy'}", "--model.dtype=auto",
            "--data.source=JsonlQuestions", f"--data.source.train={folder / 'questions.jsonl'}",
            f"--data.prompts_per_iteration={len(QUESTIONS)}", f"--data.prompts_per_minibatch={len(QUESTIONS) // 2}",
            "--rollout.tools=[{class_path: tests.examples.calculator.Add}]",
            "--rollout.reward=tests.examples.calculator.IsSum",
            "--rollout.syntax=TagSyntax", "--rollout.syntax.result_format=<result>{result}</result>",
            "--rollout.syntax.instructions=null",
            f"--rollout.limits.max_response_tokens={one_file.MAX_TOKENS - 6}", "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={folder / 'run'}",
        ]
    )  # fmt: skip
    return folder


def test_an_iteration_is_the_one_of_the_framework(fit, monkeypatch):
    (row,) = (row for row in metrics(fit / "run") if row["rollout/reward_mean"])
    assert float(row["train/steps_without_signal"]) == 0
    records = list(read_trajectories(fit / "run/trajectories/iteration_00000.jsonl.zst"))
    questions = list(dict.fromkeys(record["prompt"]["question"] for record in records))
    assert len(questions) == len(QUESTIONS)
    # Some roots are too short for B branches, so that M is less.
    assert 10 * len(QUESTIONS) < len(records) < len(QUESTIONS) * BRANCHING.num_trajectories
    policy = AutoModelForCausalLM.from_pretrained(fit / "policy", dtype="auto")
    begin = deepcopy(policy.state_dict())
    optimizer = torch.optim.AdamW(policy.parameters(), **PRESET["model"]["optimizer"]["init_args"])
    for number in range(2):
        half = questions[4 * number : 4 * (number + 1)]
        part = [record for record in records if record["prompt"]["question"] in half]
        roots = [tokens_of(record) for record in part if record["branch_position"] is None]
        others = [record for record in part if record["branch_position"] is not None]

        def continued(_: PreTrainedModel, starts: list[one_file.Trajectory]) -> list[one_file.Trajectory]:
            """The branches that the framework has sampled from the same starts."""
            branches = [tokens_of(record) for record in others]  # noqa: B023 - called within this round
            shared = [record["branch_position"] + 1 for record in others]  # noqa: B023
            left = list(zip(branches, shared, strict=True))
            # In the order of the file, which goes root by root.
            found = []
            for start in starts:
                place = next(i for i, (branch, end) in enumerate(left) if branch[:end] == start)
                found.append(left.pop(place)[0])
            assert left == []
            return found

        monkeypatch.setattr(one_file, "rollout", continued)
        one_file.update(policy, optimizer, roots, is_changed=number > 0)
        for record in part:
            assert one_file.reward(tokens_of(record)) == record["reward"]
    trained = AutoModelForCausalLM.from_pretrained(fit / "run/policy", dtype="auto").state_dict()
    for name, values in policy.state_dict().items():
        torch.testing.assert_close(values, trained[name], rtol=0.0, atol=1e-6)
        assert (values - begin[name]).abs().max() > 1e-4


def test_both_record_the_log_probs_of_the_policy_that_sampled(fit, sampler, roots):
    records = read_trajectories(fit / "run/trajectories/iteration_00000.jsonl.zst")
    of_framework = [tokens_of(record) for record in records if record["branch_position"] is None]
    for trajectories, tolerance in ((roots, 1e-6), (of_framework, 1e-5)):  # the engine samples in float32
        token_ids, mask, recorded = one_file.collate(trajectories)
        log_probs, _ = one_file.evaluate(sampler, token_ids)
        torch.testing.assert_close(recorded.double(), log_probs.where(mask, 0.0), rtol=0.0, atol=tolerance)


def test_tokens_are_drawn_as_often_as_their_probability_says(sampler, monkeypatch):
    question, num_draws = one_file.encode(QUESTIONS[0]), 4000
    monkeypatch.setattr(one_file, "MAX_TOKENS", len(question) + 1)
    torch.manual_seed(5)
    drawn = one_file.rollout(sampler, [[*question] for _ in range(num_draws)])
    number = torch.bincount(torch.tensor([row[-1].id for row in drawn]), minlength=len(one_file.VOCABULARY))
    with torch.no_grad():
        expected = num_draws * sampler(one_file.collate([question])[0]).logits[0, -1].softmax(-1)
    is_likely = expected > 5
    assert is_likely.sum() > 3
    # The statistic of 10 degrees of freedom exceeds 36 once in 10,000 times.
    assert ((number - expected).square() / expected)[is_likely].sum() < 36
    assert number[~is_likely].sum() < 3 * expected[~is_likely].sum() + 10
