"""Measures the tensor maths of an APPO iteration, from measured trajectories to the gradient of the loss.

One pass takes 2 prompts with 8 initial trajectories each, full to the last token with tool calls in between:

- `scoring`: `BranchingScore`;
- `candidates`: which positions may be branched at all, with every kind of exclusion;
- `selection`: 8 branch points of each prompt, preferred ones first;
- `advantage`: `ProceduralAdvantage` of the initial trajectories and as many branches;
- `loss`: `ProceduralLoss` of the initial trajectories with a k3 divergence, and its gradient by the log-probs.

The two lengths take turns; the figures are medians over rounds. For scale, `square_matrix` is the future value of a
single row as its definition reads, a sum over a ``T x T`` matrix of discounts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from appo.advantages import ProceduralAdvantage
from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.functional import ChosenPoints, future_likelihood_gain, select_branch_points
from appo.losses import ProceduralLoss
from appo.rollouts.branching import Branching, has_room
from appo.rollouts.candidates import CandidateFilter, Exclusion
from appo.scorers import BatchContext, BranchingScore

VOCAB_SIZE = 30_000
SPECIAL = ["<pad>", "<search>", "</search>", ",", " "]
NUM_PROMPTS = 2
PROMPT_LENGTH = 256
TURN_LENGTH, RESULT_LENGTH = 200, 40
EXCLUSIONS = get_args(Exclusion)
HALF_LIFE = 32.0
DISCOUNT = 2.0 ** (-1.0 / HALF_LIFE)
CLIP = 0.2


@dataclass(frozen=True, eq=False)
class Measured:
    """What the maths begins with.

    Attributes:
        initial: the initial trajectories, measured and not yet rewarded.
        rewards: ``[2 * B]`` of the initial trajectories, then of as many branches.
        log_probs: ``[B, T]`` under the live policy.
        ref_log_probs: ``[B, T]`` under the reference.
    """

    initial: TrajectoryBatch
    rewards: Tensor
    log_probs: Tensor
    ref_log_probs: Tensor


@dataclass(frozen=True)
class Result:
    """Median seconds of each phase, and of all together, at one length."""

    num_rows: int
    num_tokens: int
    phases_s: dict[str, float]
    total_s: float


def make_measured(num_rows: int, length: int) -> Measured:
    """Draws trajectories of one length: a prompt, then turns that end with a call of ten tokens, and their results."""
    generator = torch.Generator().manual_seed(0)
    position = torch.arange(length).expand(num_rows, length) - PROMPT_LENGTH
    of_turn = position % (TURN_LENGTH + RESULT_LENGTH)
    mask = (position >= 0) & (of_turn < TURN_LENGTH)
    token_ids = torch.randint(3, VOCAB_SIZE, (num_rows, length), generator=generator)
    token_ids[mask & (of_turn == TURN_LENGTH - 12)] = SPECIAL.index("<search>")
    token_ids[mask & (of_turn == TURN_LENGTH - 1)] = SPECIAL.index("</search>")
    behavior = (torch.rand(num_rows, length, generator=generator) + 1e-3).log() * mask
    old, live, reference = (
        behavior + spread * torch.randn(num_rows, length, generator=generator) * mask for spread in (0.02, 0.05, 0.1)
    )
    return Measured(
        initial=make_batch(
            token_ids=token_ids,
            lengths=torch.full((num_rows,), length),
            response_mask=mask,
            behavior_log_probs=behavior,
            old_log_probs=old,
            entropies=2.0 * torch.rand(num_rows, length, generator=generator) * mask,
            evaluated_by=torch.ones(num_rows, dtype=torch.int64),  # by another version than the one that sampled
            rewards=torch.full((num_rows,), float("nan")),
            group=torch.arange(num_rows) * NUM_PROMPTS // num_rows,
            parent=torch.full((num_rows,), NO_PARENT),
            branch_position=torch.full((num_rows,), NO_PARENT),
            branch_score=torch.zeros(num_rows),
        ),
        rewards=torch.rand(2 * num_rows, generator=generator),
        log_probs=live,
        ref_log_probs=reference,
    )


def make_filter() -> CandidateFilter:
    """The filter over a vocabulary of words, a few of them tags, punctuation and white space."""
    vocabulary = {text: token_id for token_id, text in enumerate(SPECIAL)}
    vocabulary |= {f" w{token_id}": token_id for token_id in range(len(SPECIAL), VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    return CandidateFilter(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"), EXCLUSIONS)


def with_branches(initial: TrajectoryBatch, points: ChosenPoints, rewards: Tensor) -> TrajectoryBatch:
    """The initial trajectories, and behind them a branch of each point; the maths reads no tokens of branches."""
    rows = torch.cat([torch.arange(len(initial.group)), points.rows])
    none = torch.full_like(initial.group, NO_PARENT)
    return make_batch(
        token_ids=initial.token_ids[rows],
        lengths=initial.lengths[rows],
        response_mask=initial.response_mask[rows],
        behavior_log_probs=initial.behavior_log_probs[rows],
        old_log_probs=initial.old_log_probs[rows],
        entropies=initial.entropies[rows],
        rewards=rewards,
        group=initial.group[rows],
        parent=torch.cat([none, points.rows]),
        branch_position=torch.cat([none, points.positions]),
        branch_score=torch.cat([initial.branch_score, points.scores]),
    )


def run_maths(measured: Measured, candidate_filter: CandidateFilter) -> dict[str, float]:
    """One pass; seconds by phase. What `collate` and the policy do in a run is not counted."""
    seconds: dict[str, float] = {}
    initial = measured.initial
    num_rows, length = initial.token_ids.shape
    context = BatchContext(torch.Generator())
    with stopped(seconds, "scoring"):
        scores = BranchingScore(half_life=HALF_LIFE, clip=CLIP)(initial, context)
    with stopped(seconds, "candidates"):
        room = has_room(initial, length - PROMPT_LENGTH, Branching.min_remaining)
        candidates = candidate_filter(initial) & room
    with stopped(seconds, "selection"):
        points = select_branch_points(
            scores.values, scores.preferred, candidates, initial.group, budget=num_rows // NUM_PROMPTS
        )
    assert len(points.rows) == num_rows, "there must be a point a row, or less is measured"
    rewarded = with_branches(initial, points, measured.rewards)
    with stopped(seconds, "advantage"):
        advantages = ProceduralAdvantage()(rewarded, context)
    batch = make_batch(
        token_ids=initial.token_ids,
        lengths=initial.lengths,
        response_mask=initial.response_mask,
        behavior_log_probs=initial.behavior_log_probs,
        old_log_probs=initial.old_log_probs,
        advantages=advantages[:num_rows],
        ref_log_probs=measured.ref_log_probs,
    )
    log_probs = measured.log_probs.clone().requires_grad_()
    with stopped(seconds, "loss"):
        loss, _ = ProceduralLoss(kl_coef=0.001)(log_probs, initial.entropies, batch)
        loss.backward()
    return seconds


def run_square_matrix(measured: Measured) -> dict[str, float]:
    """The future value of the first row by its definition, and by ours for comparison."""
    seconds: dict[str, float] = {}
    initial = measured.initial
    mask = initial.response_mask[0]
    log_ratio = initial.old_log_probs[0] - initial.behavior_log_probs[0]
    with stopped(seconds, "square_matrix"):
        position = torch.arange(len(mask))
        distance = position.unsqueeze(0) - position.unsqueeze(-1)
        decay = torch.where(distance >= 0, DISCOUNT ** distance.clamp(min=0).float(), 0.0)
        expected = (decay @ log_ratio.where(mask, 0.0)).exp().clamp(1.0 - CLIP, 1.0 + CLIP)
    with stopped(seconds, "blocked_sum"):
        gain = future_likelihood_gain(log_ratio, mask, DISCOUNT, CLIP)
    torch.testing.assert_close(gain, expected, atol=1e-4, rtol=0.0)
    return seconds


@contextmanager
def stopped(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Notes how long its body takes."""
    begin = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - begin


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each key over rounds."""
    return {key: statistics.median(seconds[key] for seconds in rounds) for key in rounds[0]}


def measure(num_rows: int, lengths: list[int], rounds: int) -> tuple[list[Result], list[dict[str, float]]]:
    """Runs the lengths in turn, after one round that does not count; then the naive definition likewise."""
    batches, candidate_filter = [make_measured(num_rows, length) for length in lengths], make_filter()
    passes = interleaved([partial(run_maths, batch, candidate_filter) for batch in batches], rounds)
    squares = interleaved([partial(run_square_matrix, batch) for batch in batches], max(1, rounds // 3))
    results = []
    for length, seconds in zip(lengths, passes, strict=True):
        together = statistics.median(sum(phases.values()) for phases in seconds)
        results.append(Result(num_rows, length, medians(seconds), together))
    return results, [medians(seconds) for seconds in squares]


def interleaved(runs: list[Callable[[], dict[str, float]]], rounds: int) -> list[list[dict[str, float]]]:
    """What each returned in every round but the first."""
    by_round = [[run() for run in runs] for _ in range(rounds + 1)]
    return [list(results) for results in zip(*by_round[1:], strict=True)]


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.maths", description="The tensor maths of an iteration.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of maths.json")
    parser.add_argument("--rounds", type=int, default=15, help="measured passes at each length")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--rows", type=int, default=16, help="initial trajectories")
    parser.add_argument("--lengths", type=int, nargs=2, default=[4096, 8192], help="tokens of a row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results, squares = measure(options.rows, options.lengths, options.rounds)
    short, long = results
    print(f"{'ms':22}", *(f"{f'{r.num_rows} x {r.num_tokens}':>12}" for r in results), f"{'ratio':>7}")
    rows = {name: (seconds, long.phases_s[name]) for name, seconds in short.phases_s.items()}
    rows["together"] = short.total_s, long.total_s
    rows |= {f"{name}, 1 row": (seconds, squares[1][name]) for name, seconds in squares[0].items()}
    for name, (first, second) in rows.items():
        print(f"{name:22} {1e3 * first:12.2f} {1e3 * second:12.2f} {second / first:7.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "results": [asdict(result) for result in results],
        "ratio": long.total_s / short.total_s,
        "one_row": [
            {"num_tokens": result.num_tokens, **{f"{name}_s": value for name, value in square.items()}}
            for result, square in zip(results, squares, strict=True)
        ],
    }
    (options.out / "maths.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
