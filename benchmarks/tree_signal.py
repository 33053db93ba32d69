"""Measures how much signal a sampled token buys: gradients from trees against GRPO's, where the true one is known.

*Model.* A tabular policy of `LENGTH` tokens, each from `VOCAB_SIZE` and with logits of its own, drawn from a standard
normal. Three tokens are decisions, whose logits depend on the decisions before them; the reward is 1 where enough of
them are right, as half of the vocabulary is. All other tokens are noise that the reward does not see. The expected
reward, its gradient by the logits, and the value of every choice are enumerated.

*Gradient.* The one at the policy that sampled, of one prompt: the sum over trained tokens of the advantage times the
gradient of the log-prob, in float64. Advantages and trained tokens are those of `credited`.

*Signal.* With `u` the true gradient's direction and `g` the estimate of a prompt,

``SNR = (E[g] . u)**2 / tr Cov(g)``

which no factor changes, divided by the sampled tokens of a prompt, of which a branch has its own alone. It is given as
a multiple of GRPO's with as many sampled tokens on average: whole trajectories, one more or less a prompt. A prompt is
a replication; a policy's ratio is taken over all of them, and the mean and standard error are over policies. `cosine`
is that of E[g] and the true gradient: what is missing to 1 is bias, noise in the mean being subtracted.

*Branch points* are resampled, and never the last token: `oracle`, the largest ``Var_a Q`` and only where it is not 0;
`random`, uniform.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from appo.advantages import (
    AdvantageEstimator,
    DualGroupAdvantage,
    GroupAdvantage,
    ProceduralAdvantage,
    SegmentAdvantage,
    SiblingAdvantage,
)
from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import select_branch_points
from appo.rollouts.credit import TrainOn, credited
from benchmarks.tabular_policy import TabularPolicy, draw_roots, make_rows

LENGTH = 24
VOCAB_SIZE = 4
DECISIONS = {"late": (16, 19, 22), "early": (1, 4, 7)}
NUM_RIGHT = {"all right": 3, "most right": 2}

Points = Literal["oracle", "random"]


@dataclass(frozen=True)
class Design:
    """How many trajectories a prompt has.

    Attributes:
        num_roots: sampled from the prompt.
        num_branches: of a prompt, or of a root with `per_trajectory`.
        selection: as `rollout.branching.selection`.
    """

    num_roots: int
    num_branches: int
    selection: Literal["per_prompt", "per_trajectory"]


DESIGNS = {"8 + 8": Design(8, 8, "per_prompt"), "4 + 12": Design(4, 3, "per_trajectory")}
"""Of the release, pooled over a prompt, and of the paper, three of each root."""

GRPO = GroupAdvantage()
ESTIMATORS: Mapping[str, tuple[AdvantageEstimator, TrainOn]] = {
    "APPO, release": (ProceduralAdvantage(), "roots"),
    "APPO, paper": (DualGroupAdvantage(), "roots"),
    "both, Procedural": (ProceduralAdvantage(), "both"),
    "both, DualGroup": (DualGroupAdvantage(), "both"),
    "both, Group": (GroupAdvantage(), "both"),
    "both, Sibling": (SiblingAdvantage(), "both"),
    "both, Segment": (SegmentAdvantage(), "both"),
}


def draw_policy(decisions: tuple[int, ...], num_right: int, generator: torch.Generator) -> TabularPolicy:
    """A policy with logits from a standard normal; the reward is 1 where at least `num_right` decisions are right."""
    num_states = LENGTH - len(decisions) + sum(VOCAB_SIZE**number for number in range(len(decisions)))
    logits = torch.randn(num_states, VOCAB_SIZE, generator=generator, dtype=torch.float64)
    is_right = torch.cartesian_prod(*[torch.arange(VOCAB_SIZE) < VOCAB_SIZE // 2] * len(decisions))
    return TabularPolicy(logits, LENGTH, decisions, (is_right.sum(-1) >= num_right).double())


def with_branches(
    policy: TabularPolicy, roots: TrajectoryBatch, design: Design, points: Points, generator: torch.Generator
) -> TrajectoryBatch:
    """The roots, and behind them a branch of each chosen point."""
    responses = roots.token_ids[:, 1:]
    scores, candidates = torch.zeros(roots.token_ids.shape, dtype=torch.float64), roots.response_mask.clone()
    candidates[:, -1] = False
    if points == "oracle":
        scores[:, 1:] = policy.influence()[policy.all_states(responses)]
        candidates &= scores > 0.0
    else:
        scores = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
    chosen = select_branch_points(
        scores, None, candidates, roots.group, budget=design.num_branches, scope=design.selection
    )
    # A position of the batch is one behind that of the response, so the chosen token is the first of the branch.
    branches = policy.sample(responses[chosen.rows], chosen.positions - 1, generator)
    return make_rows(
        policy,
        torch.cat([responses, branches]),
        torch.cat([roots.group, roots.group[chosen.rows]]),
        parent=torch.cat([roots.parent, chosen.rows]),
        branch_position=torch.cat([torch.full_like(roots.group, NO_PARENT), chosen.positions - 1]),
    )


def gradients(policy: TabularPolicy, batch: TrajectoryBatch, estimate: AdvantageEstimator, train_on: TrainOn) -> Tensor:
    """``[P, S, V]``, of each prompt by the logits: the sum over trained tokens of ``A (onehot(token) - probs)``."""
    context = BatchContext(torch.Generator())  # none of these estimators looks beside the batch
    trained = credited(batch, context, estimate, train_on, torch.ones(len(batch), dtype=torch.bool))
    assert trained.advantages is not None
    advantages, tokens = trained.advantages[:, 1:], trained.token_ids[:, 1:]
    num_prompts, (num_states, vocab_size) = int(batch.group.max()) + 1, policy.logits.shape
    places = batch.group.unsqueeze(-1) * num_states + policy.all_states(tokens)
    flat = advantages.new_zeros(num_prompts * num_states * vocab_size)
    taken = flat.index_add(0, (places * vocab_size + tokens).flatten(), advantages.flatten())
    taken = taken.view(num_prompts, num_states, vocab_size)
    return taken - taken.sum(-1, keepdim=True) * policy.probs


@dataclass(frozen=True)
class Signal:
    """What the gradients of prompts say of the true one: signal to noise of one prompt, and the mean's direction."""

    snr: float
    cosine: float


def signal_of(estimates: Tensor, truth: Tensor) -> Signal:
    """Of ``[P, S, V]`` gradients of prompts and the true one."""
    flat, direction = estimates.flatten(1), truth.flatten() / truth.norm()
    noise, mean = float(flat.var(0).sum()), flat.mean(0)
    along = float(mean @ direction)
    # A mean over P prompts is by tr Cov / P longer, squared, than what it estimates.
    length = math.sqrt(max(float(mean @ mean) - noise / len(flat), along**2))
    return Signal(along**2 / noise, along / length)


@dataclass(frozen=True)
class Result:
    """One estimator in one setting: means over policies; ratios are to GRPO."""

    decisions: str
    reward: str
    design: str
    points: Points
    estimator: str
    tokens: float
    grpo_tokens: float
    ratio: float
    standard_error: float
    cosine: float
    grpo_cosine: float


def measure(
    decisions: str, reward: str, design: str, points: Points, num_policies: int, num_prompts: int
) -> list[Result]:
    """All estimators on the same trees, policy by policy; settings share their policies and roots."""
    tokens, grpo_tokens, grpo_cosines = [], [], []
    ratios: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    cosines: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for seed in range(num_policies):
        generator = torch.Generator().manual_seed(seed)
        policy = draw_policy(DECISIONS[decisions], NUM_RIGHT[reward], generator)
        truth = policy.true_gradient()
        roots = draw_roots(policy, torch.full((num_prompts,), DESIGNS[design].num_roots), generator)
        trees = with_branches(policy, roots, DESIGNS[design], points, generator)
        tokens.append(int((trees.is_own & trees.response_mask).sum()) / num_prompts)
        whole, part = divmod(tokens[-1] / LENGTH, 1.0)
        sizes = int(whole) + (torch.rand(num_prompts, generator=generator) < part).long()
        group = draw_roots(policy, sizes, generator)
        grpo_tokens.append(int(sizes.sum()) * LENGTH / num_prompts)
        grpo = signal_of(gradients(policy, group, GRPO, "roots"), truth)
        grpo_cosines.append(grpo.cosine)
        for name, (estimate, train_on) in ESTIMATORS.items():
            signal = signal_of(gradients(policy, trees, estimate, train_on), truth)
            ratios[name].append(signal.snr / tokens[-1] / (grpo.snr / grpo_tokens[-1]))
            cosines[name].append(signal.cosine)
    shared = statistics.fmean(tokens), statistics.fmean(grpo_tokens)
    return [
        Result(
            decisions, reward, design, points, name, *shared, statistics.fmean(ratios[name]),
            statistics.stdev(ratios[name]) / math.sqrt(num_policies), statistics.fmean(cosines[name]),
            statistics.fmean(grpo_cosines),
        )
        for name in ESTIMATORS
    ]  # fmt: skip


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.tree_signal", description="Signal of trees a sampled token.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of tree_signal.json")
    parser.add_argument("--policies", type=int, default=20, help="drawn in each setting, at least 2")
    parser.add_argument("--prompts", type=int, default=1000, help="replications of each policy")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: list[Result] = []
    for design in DESIGNS:
        for points in ("oracle", "random"):
            columns = [
                measure(decisions, reward, design, points, options.policies, options.prompts)
                for decisions in DECISIONS
                for reward in NUM_RIGHT
            ]
            print(f"{f'{design}, {points}':22}", *(f"{f'{c[0].decisions}, {c[0].reward}':>20}" for c in columns))
            for row in zip(*columns, strict=True):
                cells = (f"{each.ratio:.2f} ± {each.standard_error:.2f} ({each.cosine:.2f})" for each in row)
                print(f"{row[0].estimator:22}", *(f"{cell:>20}" for cell in cells), flush=True)
            print(f"{'tokens':22}", *(f"{column[0].tokens:20.1f}" for column in columns))
            results += [each for column in columns for each in column]
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "length": LENGTH,
        "vocab_size": VOCAB_SIZE,
        "decisions": DECISIONS,
        "num_right": NUM_RIGHT,
        "designs": {name: asdict(design) for name, design in DESIGNS.items()},
        "policies": options.policies,
        "prompts": options.prompts,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "results": [asdict(result) for result in results],
    }
    (options.out / "tree_signal.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
