"""Measures how rewards judge answers: precision and recall on labelled pairs of an answer and accepted ones.

`verdicts.jsonl` holds 400 pairs of 25 kinds, eight right and eight wrong of each, labelled by what they mean. An answer
counts as accepted if its `accuracy` is 1. Precision is the share of accepted answers that are right, recall that of
right ones that are accepted. `JudgeReward` is left out: it is as good as its model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from appo.core.trajectory import Prompt, Segment, Trajectory
from appo.rewards import AnswerReward, ExactMatchReward, MathReward, Reward

PAIRS = Path(__file__).with_name("verdicts.jsonl")
REWARDS: dict[str, Callable[[], Reward]] = {
    "AnswerReward": AnswerReward,
    "AnswerReward, math_verify": lambda: AnswerReward(math_verify=True),
    "AnswerReward, released_rules": lambda: AnswerReward(released_rules=True),
    "ExactMatchReward": ExactMatchReward,
    "MathReward": MathReward,
}


@dataclass(frozen=True)
class Pair:
    """An answer, the accepted ones, and whether it is right."""

    kind: str
    accepted: tuple[str, ...]
    answer: str
    right: bool


@dataclass(frozen=True)
class Result:
    """How a reward judges.

    Attributes:
        reward: its name.
        wrong_accepted: number of wrong answers that it accepts.
        right_refused: number of right answers that it refuses.
        precision: share of the accepted answers that are right.
        recall: share of the right answers that are accepted.
        mistakes: kind, accepted answers and answer of each wrong verdict.
    """

    reward: str
    wrong_accepted: int
    right_refused: int
    precision: float
    recall: float
    mistakes: list[str]


def read_pairs() -> list[Pair]:
    """The labelled pairs."""
    rows = map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines())
    return [Pair(row["kind"], tuple(row["accepted"]), row["answer"], row["right"]) for row in rows]


def response(answer: str, accepted: Sequence[str]) -> Trajectory:
    """A response in the right form that gives an answer."""
    text = f"<think>so</think><answer>\\boxed{{{answer}}}</answer>"
    tokens = torch.zeros(2)
    return Trajectory(
        prompt=Prompt("p", "What is it?", (1,), tuple(accepted)),
        token_ids=tokens.long(),
        response_mask=torch.tensor([False, True]),
        behavior_log_probs=tokens,
        policy_versions=tokens.long(),
        segments=(Segment(text, True),),
        tool_calls=(),
        finish_reason="eos",
    )


@contextmanager
def started(reward: Reward) -> Iterator[Reward]:
    """The reward, between its start and its stop."""
    reward.start()
    try:
        yield reward
    finally:
        reward.stop()


def measure(name: str, pairs: Sequence[Pair]) -> Result:
    """Judges all pairs with one reward."""
    counts = {(right, accepted): 0 for right in (True, False) for accepted in (True, False)}
    mistakes = []
    with started(REWARDS[name]()) as reward:
        for pair in pairs:
            is_accepted = reward(response(pair.answer, pair.accepted)).parts["accuracy"] == 1.0
            counts[pair.right, is_accepted] += 1
            if is_accepted != pair.right:
                mistakes.append(f"{pair.kind}: {pair.answer} for {' or '.join(pair.accepted)}")
    right, wrong, refused = counts[True, True], counts[False, True], counts[True, False]
    return Result(name, wrong, refused, right / max(right + wrong, 1), right / max(right + refused, 1), mistakes)


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.verdicts", description="Right and wrong verdicts on answers.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of verdicts.json")
    options = parser.parse_args()
    pairs = read_pairs()
    results = [measure(name, pairs) for name in REWARDS]
    num_right = sum(pair.right for pair in pairs)
    print(
        f"| reward | wrong accepted, of {len(pairs) - num_right} | right refused, of {num_right} | precision | recall |"
    )
    print("|---|---|---|---|---|")
    for row in results:
        figures = f"{row.wrong_accepted} | {row.right_refused} | {row.precision:.1%} | {row.recall:.1%}"
        print(f"| `{row.reward}` | {figures} |")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"pairs": len(pairs), "right": num_right, "results": [asdict(row) for row in results]}
    (options.out / "verdicts.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
