from __future__ import annotations

from collections import defaultdict
from itertools import permutations, product
from math import prod

import pytest
import torch

from appo.functional import bootstrap_variance, influence_p_values, reward_variance


def test_the_influence_by_hand():
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    tokens = torch.tensor([[7, 7, 7, 9, 9, 5]])
    # q: 2/3, 0, 1 of 3, 2, 1 continuations; V = 1/2.
    # between = 3 (1/6)^2 + 2 (1/2)^2 + 1 (1/2)^2 = 5/6; s^2 = 1/3 and 0; the single one has (2/3) / (6 - 3) = 2/9.
    # noise = 1/3 (1 - 3/6) + 0 + 2/9 (1 - 1/6) = 19/54; (5/6 - 19/54) / 5 = 26/270
    estimate = reward_variance(rewards, tokens)
    assert estimate.influence.item() == pytest.approx(26 / 270)
    assert estimate.total.item() == pytest.approx(0.3)
    assert estimate.mean.item() == pytest.approx(0.5)


def naive(rewards: list[float], tokens: list[int]) -> tuple[float, float]:
    """Total variance and influence by the definition."""
    num, mean = len(rewards), sum(rewards) / len(rewards)
    groups = defaultdict(list)
    for reward, token in zip(rewards, tokens, strict=True):
        groups[token].append(reward)
    total = sum((reward - mean) ** 2 for reward in rewards) / (num - 1)
    centers = {token: sum(group) / len(group) for token, group in groups.items()}
    squares = {token: sum((reward - centers[token]) ** 2 for reward in group) for token, group in groups.items()}
    if len(groups) == num:
        return total, float("nan")
    pooled = sum(squares.values()) / (num - len(groups))
    between = noise = 0.0
    for token, group in groups.items():
        size = len(group)
        between += size * (centers[token] - mean) ** 2
        noise += (squares[token] / (size - 1) if size > 1 else pooled) * (1 - size / num)
    return total, (between - noise) / (num - 1)


@pytest.mark.parametrize("num", [2, 3, 8, 16])
def test_many_positions_are_what_each_is_by_the_definition(num):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (50, num), generator=generator)
    rewards = torch.rand(50, num, generator=generator, dtype=torch.float64)
    expected = torch.tensor([naive(*row) for row in zip(rewards.tolist(), tokens.tolist(), strict=True)])
    estimate = reward_variance(rewards, tokens)
    torch.testing.assert_close(torch.stack([estimate.total, estimate.influence], -1), expected.double(), equal_nan=True)


def expectation(probabilities: dict[int, float], rewards: dict[int, dict[float, float]], num: int) -> tuple[float, ...]:
    """Of the estimates over everything that may be drawn."""
    outcomes = [
        (token, reward, probability * chance)
        for token, probability in probabilities.items()
        for reward, chance in rewards[token].items()
    ]
    draws = list(product(outcomes, repeat=num))
    weights = torch.tensor([prod(chance for *_, chance in draw) for draw in draws], dtype=torch.float64)
    estimate = reward_variance(
        torch.tensor([[reward for _, reward, _ in draw] for draw in draws], dtype=torch.float64),
        torch.tensor([[token for token, *_ in draw] for draw in draws]),
    )
    known = ~estimate.influence.isnan()
    return (
        float(weights @ estimate.total),
        float(weights[known] @ estimate.influence[known] / weights[known].sum()),
        float(weights[~known].sum()),
    )


@pytest.mark.parametrize("num", [3, 4, 5])
@pytest.mark.parametrize("probability", [0.5, 0.3, 0.05])
def test_estimates_have_no_bias_where_tokens_have_one_variance(probability, num):
    rewards = {0: {0.0: 0.8, 1.0: 0.2}, 1: {0.0: 0.2, 1.0: 0.8}}
    total, influence, unknown = expectation({0: probability, 1: 1 - probability}, rewards, num)
    between = probability * (1 - probability) * 0.6**2
    assert unknown == 0.0  # two tokens, at least three draws
    assert influence == pytest.approx(between, abs=1e-12)
    assert total == pytest.approx(between + 0.16, abs=1e-12)


def test_the_total_has_no_bias_whatever_the_rewards():
    rewards = {0: {-1.0: 0.5, 2.0: 0.5}, 1: {0.25: 1.0}, 2: {0.0: 0.9, 1.0: 0.1}}
    total, *_ = expectation({0: 0.2, 1: 0.5, 2: 0.3}, rewards, 4)
    mean = 0.2 * 0.5 + 0.5 * 0.25 + 0.3 * 0.1
    square = 0.2 * 2.5 + 0.5 * 0.25**2 + 0.3 * 0.1
    assert total == pytest.approx(square - mean**2, abs=1e-12)


def test_a_decision_that_does_not_matter_has_no_influence_in_the_mean():
    same = {0.0: 0.7, 1.0: 0.3}
    _, influence, _ = expectation({0: 0.6, 1: 0.4}, {0: same, 1: same}, 4)
    assert influence == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "means"),
    [([0.5, 0.5], [0.2, 0.8]), ([0.9, 0.1], [0.1, 0.9]), ([0.05] * 20, [0.9] * 4 + [0.1] * 16)],
)
def test_estimates_of_binary_rewards_come_out_right_on_average(probabilities, means):
    generator = torch.Generator().manual_seed(1)
    chances, q = torch.tensor(probabilities).double(), torch.tensor(means).double()
    tokens = torch.multinomial(chances.expand(20_000, -1), 16, replacement=True, generator=generator)
    rewards = (torch.rand(tokens.shape, generator=generator, dtype=torch.float64) < q[tokens]).double()
    influence = reward_variance(rewards, tokens).influence
    influence = influence[~influence.isnan()]
    expected = float(chances @ q.square() - (chances @ q) ** 2)
    error = float(influence.std() / len(influence) ** 0.5)
    # Four standard errors, and the bias of tokens whose variances differ.
    assert float(influence.mean()) == pytest.approx(expected, abs=4 * error + 0.02 * expected)


@pytest.mark.parametrize("num", range(3, 20))
def test_a_single_token_decides_nothing_exactly(num):
    rewards = torch.rand(20, num, generator=torch.Generator().manual_seed(num), dtype=torch.float64)
    assert (reward_variance(rewards, torch.zeros(20, num, dtype=torch.int64)).influence == 0.0).all()


@pytest.mark.parametrize("num", range(5, 20))
def test_equal_rewards_have_no_variance_exactly(num):
    generator = torch.Generator().manual_seed(num)
    rewards = torch.rand(20, 1, generator=generator, dtype=torch.float64).expand(-1, num)
    estimate = reward_variance(rewards, torch.randint(4, (20, num), generator=generator))
    assert (estimate.total == 0.0).all()
    assert (estimate.influence == 0.0).all()


def test_the_influence_is_unknown_where_all_tokens_differ():
    estimate = reward_variance(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[1, 2, 3]]))
    assert estimate.influence.isnan().all()
    assert estimate.total.item() == pytest.approx(1 / 3)


def test_one_continuation_is_refused():
    with pytest.raises(ValueError, match="rewards must be of at least 2 continuations a position, got 1"):
        reward_variance(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64))


def test_intervals_of_a_bootstrap_cover_the_truth_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(2)
    q = torch.tensor([0.1, 0.5]).double()
    tokens = torch.randint(2, (400, 16), generator=generator)
    rewards = (torch.rand(tokens.shape, generator=generator, dtype=torch.float64) < q[tokens]).double()
    influence, total = bootstrap_variance(rewards, tokens, 200, generator)
    for samples, truth in ((influence, 0.04), (total, 0.21)):
        assert samples.shape == (200, 400)
        low, high = samples.nanquantile(torch.tensor([0.025, 0.975]).double(), dim=0)
        assert 0.85 < float(((low <= truth) & (truth <= high)).double().mean()) < 0.99


def test_p_values_are_shares_of_all_permutations():
    rewards = torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    tokens = torch.tensor([[7, 7, 7, 9, 9, 5], [1, 1, 2, 2, 3, 3]])
    observed = reward_variance(rewards, tokens).influence
    orders = torch.tensor([*permutations(range(6))])
    expected = []
    for row in range(2):
        permuted = reward_variance(rewards[row][orders], tokens[row].expand(len(orders), -1)).influence
        expected.append(float((permuted >= observed[row] - 1e-12).double().mean()))
    estimated = influence_p_values(rewards, tokens, 4000, torch.Generator().manual_seed(0))
    assert estimated.tolist() == pytest.approx(expected, abs=0.02)
    assert expected[0] < 0.2 < expected[1]


def test_p_values_of_noise_are_small_no_more_often_than_they_say():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, (2000, 16), generator=generator)
    rewards = (torch.rand(tokens.shape, generator=generator, dtype=torch.float64) < 0.4).double()
    p_values = influence_p_values(rewards, tokens, 99, generator)
    for level in (0.01, 0.05, 0.2):
        # Three standard errors.
        assert float((p_values <= level).double().mean()) <= level + 3 * (level * (1 - level) / 2000) ** 0.5
    decided = influence_p_values((tokens == 0).double(), tokens, 99, generator)
    # A token that was drawn once is no evidence.
    assert (decided <= 0.05).double().mean() > 0.9


def test_a_p_value_is_one_where_nothing_can_be_decided_and_unknown_where_all_tokens_differ():
    rewards = torch.tensor([[0.0, 1.0, 1.0], [0.3, 0.3, 0.3], [0.0, 1.0, 1.0]])
    tokens = torch.tensor([[4, 4, 4], [1, 1, 2], [1, 2, 3]])
    first, second, unknown = influence_p_values(rewards, tokens, 9, torch.Generator()).tolist()
    assert first == second == 1.0
    assert unknown != unknown


def ragged(
    num_positions: int, most: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, tokens and mask of positions with 2 to `most` continuations; padding holds anything."""
    numbers = torch.randint(2, most + 1, (num_positions, 1), generator=generator)
    tokens = torch.randint(3, (num_positions, most), generator=generator)
    rewards = torch.rand(num_positions, most, generator=generator, dtype=torch.float64)
    return rewards, tokens, torch.arange(most) < numbers


def test_positions_with_fewer_continuations_are_what_they_are_alone():
    rewards, tokens, mask = ragged(60, 9, torch.Generator().manual_seed(3))
    alone = [
        reward_variance(rewards[row : row + 1, is_in], tokens[row : row + 1, is_in]) for row, is_in in enumerate(mask)
    ]
    together = reward_variance(rewards, tokens, mask)
    for name in together._fields:
        expected = torch.cat([getattr(each, name) for each in alone])
        torch.testing.assert_close(getattr(together, name), expected, equal_nan=True)


def test_padding_changes_no_p_value_and_no_interval():
    generator = torch.Generator().manual_seed(4)
    rewards, tokens, mask = ragged(12, 7, generator)
    expected = []
    for reward, token, is_in in zip(rewards, tokens, mask, strict=True):
        row = reward[is_in][None], token[is_in][None]
        samples = bootstrap_variance(*row, 1000, generator)[1]
        expected.append([*influence_p_values(*row, 1000, generator), samples.mean(), samples.std()])
    samples = bootstrap_variance(rewards, tokens, 1000, generator, mask)[1]
    found = torch.stack(
        [influence_p_values(rewards, tokens, 1000, generator, mask), samples.mean(0), samples.std(0)], -1
    )
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True, atol=0.06, rtol=0.1)


def test_a_position_with_one_continuation_is_refused():
    mask = torch.tensor([[True, True], [True, False]])
    with pytest.raises(ValueError, match="rewards must be of at least 2 continuations a position, got 1"):
        reward_variance(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), mask)
