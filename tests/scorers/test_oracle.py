"""The oracle, in an environment small enough to know the value of every choice."""

from itertools import product
from statistics import mean, pvariance

import pytest
import torch

from appo.core.collate import make_batch
from appo.core.trajectory import Trajectory
from appo.scorers import Oracle
from tests.scorers import functions
from tests.scorers.contexts import context_of
from tests.scorers.scored_batches import INF


def reward(choices: tuple[int, ...]) -> float:
    """Three binary choices: the first decides whether the last one matters, the second nothing."""
    return float(choices[0] == 1 and choices[2] == 1)


def value(choices: tuple[int, ...]) -> float:
    """The expected reward of a prefix, where later choices are a fair coin's."""
    return mean(reward(choices + rest) for rest in product((0, 1), repeat=3 - len(choices)))


def influence(trajectory: Trajectory, tokens: list[str]) -> list[float]:
    """``Var_a Q(prefix, a)`` of every choice, enumerated."""
    choices = tuple(trajectory.token_ids[trajectory.prompt_length :].tolist())
    of_choice = [pvariance([value((*choices[:t], a)) for a in (0, 1)]) for t in range(len(choices))]
    return [0.0] * trajectory.prompt_length + of_choice


def test_it_finds_the_choices_that_matter():
    token_ids = torch.tensor([[9, 1, 0, 0], [9, 0, 1, 1]])
    mask = torch.tensor([[0, 1, 1, 1]] * 2).bool()
    batch = make_batch(token_ids, torch.tensor([4, 4]), mask)
    scores = Oracle(influence)(batch, context_of(batch))
    # First choice: values 0 and 1/2, variance 1/16. Third: 0 and 1, variance 1/4, if the first was 1. Second: none.
    assert scores.values.tolist() == [[-INF, 1 / 16, 0.0, 1 / 4], [-INF, 1 / 16, 0.0, 0.0]]
    assert scores.factors["influence"][:, 0].tolist() == [0.0, 0.0]


def test_options_go_to_the_function(batch):
    one, two = (
        Oracle("tests.scorers.functions:influence", options)(batch, context_of(batch)).values
        for options in ({}, {"scale": 2.0})
    )
    torch.testing.assert_close(two, 2 * one)


def test_a_function_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"must take a trajectory, its tokens and the options \{'power': 2\}, got"):
        Oracle(functions.influence, {"power": 2})


@pytest.mark.parametrize("values", [[0.0] * 3, [0.0] * 5 + [float("nan")]])
def test_numbers_that_do_not_fit_are_refused(batch, values):
    with pytest.raises(ValueError, match="influence must return a finite number for each of the 6 tokens"):
        Oracle(lambda trajectory, tokens: values)(batch, context_of(batch))


def test_the_function_gets_the_text_of_each_token(batch):
    seen = []

    def of_text(trajectory: Trajectory, tokens: list[str]) -> list[float]:
        seen.append(tokens)
        return [0.0] * len(trajectory)

    context = context_of(batch)
    Oracle(of_text)(batch, context)
    assert seen == [context.tokens(row)[:length] for row, length in enumerate(batch.lengths.tolist())]
