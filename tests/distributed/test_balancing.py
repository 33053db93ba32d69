from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from appo.core.trajectory import Prompt
from appo.distributed.balancing import balance_groups, expected_tokens, response_tokens
from tests.core.two_turns import branch_trajectory, parent_trajectory

RANKS = (8, 64, 256, 1024)
RECORDED = Path(__file__).parents[2] / "../shared/data/gsm8k"


def slowest(tokens: list[float], ranks: list[list[int]]) -> float:
    """Tokens of the rank that has most of them."""
    return max(sum(tokens[prompt] for prompt in prompts) for prompts in ranks)


def mean(tokens: list[float], num_ranks: int) -> float:
    return sum(tokens) / num_ranks


def least_tokens(tokens: list[float], num_ranks: int) -> float:
    """What the slowest rank has at least, however whole groups are assigned."""
    ordered = sorted(tokens)
    return max(mean(tokens, num_ranks), ordered[-1] + sum(ordered[: len(tokens) // num_ranks - 1]))


def groups(num_prompts: int, between: float, within: float, longest: int, seed: int = 0) -> list[float]:
    """Groups of 16 responses, log-normal around the log-normal difficulty of their prompt, cut at the token limit."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = 6.5 + between * torch.randn(num_prompts, 1, generator=generator)
    lengths = (difficulty + within * torch.randn(num_prompts, 16, generator=generator)).exp().clamp(max=longest)
    prompts = torch.randint(100, 500, (num_prompts,), generator=generator)
    return (lengths.sum(1) + 16 * prompts).tolist()


def test_spreads_by_hand():
    # 9 to the first; 5 to the second; 4 to the second (5 < 9), now full; 1 to the first: 10 and 9 tokens.
    assert balance_groups([5.0, 1.0, 9.0, 4.0], 2) == [[0, 3], [1, 2]]


def test_the_slowest_rank_exchanges_a_prompt_with_the_fastest():
    # 8 | 7, then 6 to the second: 8 | 13; 5 and 5 to the first, which is full with 18; 1 to the second: 18 | 14. Half
    # of the excess is 2: a 5 and the 1 (4), 8 and 6 (2) or 8 and 7 (1) may change places, and 8 with 6 leaves nothing.
    assert balance_groups([8.0, 7.0, 6.0, 5.0, 5.0, 1.0], 2) == [[0, 1, 5], [2, 3, 4]]


@pytest.mark.parametrize("num_ranks", RANKS)
def test_every_rank_gets_as_many_prompts_and_every_prompt_goes_to_one_rank(num_ranks):
    ranks = balance_groups(groups(4 * num_ranks, 1.0, 1.0, 16384), num_ranks)
    assert {len(prompts) for prompts in ranks} == {4}
    assert sorted(prompt for prompts in ranks for prompt in prompts) == list(range(4 * num_ranks))


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize(
    ("between", "within", "longest", "per_rank"),
    [(0.5, 0.5, 2048, 4), (0.8, 0.6, 8192, 8), (1.0, 1.0, 16384, 16), (1.2, 1.0, 32768, 16)],
)
def test_the_slowest_rank_is_at_most_a_tenth_over_the_mean(num_ranks, between, within, longest, per_rank):
    tokens = groups(per_rank * num_ranks, between, within, longest)
    assert slowest(tokens, balance_groups(tokens, num_ranks)) <= 1.10 * mean(tokens, num_ranks)
    # In the order in which prompts are drawn, it would be more.
    drawn = [list(range(rank * per_rank, (rank + 1) * per_rank)) for rank in range(num_ranks)]
    assert slowest(tokens, drawn) > 1.10 * mean(tokens, num_ranks)


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("per_rank", [2, 4, 8, 16])
@pytest.mark.parametrize(("between", "within", "longest"), [(0.5, 0.5, 2048), (1.0, 1.0, 16384), (1.2, 1.0, 32768)])
def test_the_slowest_rank_is_at_most_a_tenth_over_what_no_assignment_undercuts(
    num_ranks, per_rank, between, within, longest
):
    tokens = groups(per_rank * num_ranks, between, within, longest)
    assert slowest(tokens, balance_groups(tokens, num_ranks)) <= 1.10 * least_tokens(tokens, num_ranks)


@pytest.mark.parametrize("num_ranks", RANKS)
def test_a_huge_group_gets_the_shortest_ones_beside_it(num_ranks):
    tokens = groups(8 * num_ranks, 0.5, 0.5, 2048)
    huge = tokens.index(max(tokens))
    tokens[huge] = 3.0 * mean(tokens, num_ranks)
    (own,) = (prompts for prompts in balance_groups(tokens, num_ranks) if huge in prompts)
    assert sum(tokens[prompt] for prompt in own) == pytest.approx(least_tokens(tokens, num_ranks))
    assert least_tokens(tokens, num_ranks) > 1.10 * mean(tokens, num_ranks)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="needs the recorded solutions of GSM8K")
@pytest.mark.parametrize("num_ranks", RANKS)
def test_recorded_lengths_are_spread_within_a_tenth(num_ranks):
    tokens = recorded_lengths(4 * num_ranks)
    assert slowest(tokens, balance_groups(tokens, num_ranks)) <= 1.10 * mean(tokens, num_ranks)


def recorded_lengths(number: int) -> list[float]:
    """Characters of question and worked solution, one pair after the other, again from the first where they end."""
    lines = [json.loads(line) for path in sorted(RECORDED.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    lengths = [float(len(line["question"]) + len(line["answer"])) for line in lines]
    assert len(set(lengths)) > 100
    return [lengths[i % len(lengths)] for i in range(number)]


def test_equal_groups_go_to_the_same_ranks_every_time():
    assert balance_groups([1.0] * 6, 3) == balance_groups([1.0] * 6, 3) == [[0, 3], [1, 4], [2, 5]]


def test_ranks_must_divide_the_prompts():
    with pytest.raises(ValueError, match="must be a multiple of 4 ranks, got 6"):
        balance_groups([1.0] * 6, 4)
    with pytest.raises(ValueError, match="num_ranks must be positive, got 0"):
        balance_groups([1.0], 0)


def test_prompts_are_expected_to_be_answered_as_before_and_others_like_them():
    prompts = [Prompt(name, "", (2,) * length, ()) for name, length in (("a", 10), ("b", 20), ("c", 30))]
    # Seen: (100 + 300) / 2 = 200.
    assert expected_tokens(prompts, {"a": 100.0, "c": 300.0, "d": 9.0}) == [110.0, 220.0, 330.0]
    assert expected_tokens(prompts, {"d": 9.0}) == [10.0, 20.0, 30.0]


def test_tokens_of_responses_are_those_behind_the_prompt_and_behind_the_fork():
    parent = parent_trajectory()
    # Two tokens of the prompt, five behind it; the branch shares four of them, and has three of its own.
    assert response_tokens([parent, branch_trajectory(parent)]) == {"q1": 8.0}
