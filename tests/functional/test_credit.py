import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import prefix_credit, shared_prefix_mean
from tests.functional.test_trees import owner_of, random_forest


def test_the_released_example_by_hand():
    # Branches of row 0 with advantages 1 and -1 share positions 0..1 and 0..3.
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    credit = prefix_credit(advantages, torch.tensor([-1, -1, 0, 0]), torch.tensor([-1, -1, 1, 3]), 5)
    # positions 0, 1: both, mean 0; positions 2, 3: the second alone, -1; position 4: none
    # The branches have the same at the tokens that they share.
    assert credit.tolist() == [[0, 0, -1, -1, 0], [0] * 5, [0] * 5, [0, 0, -1, -1, 0]]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_equals_the_definition_at_any_depth(seed):
    generator = torch.Generator().manual_seed(seed)
    parent, position = random_forest(generator)
    advantages = torch.randn(12, generator=generator, dtype=torch.float64)
    credit = prefix_credit(advantages, parent, position, 9)
    shared = shared_prefix_mean(advantages, parent, position, 9)
    owners = [[owner_of(row, t, parent, position) for t in range(9)] for row in range(12)]
    for row in range(12):
        for t in range(9):
            sharing = [other for other in range(12) if owners[other][t] == owners[row][t]]
            others = [float(advantages[other]) for other in sharing if other != owners[row][t]]
            torch.testing.assert_close(credit[row, t].item(), sum(others) / max(1, len(others)))
            mean = sum(float(advantages[other]) for other in sharing) / len(sharing)
            torch.testing.assert_close(shared[row, t].item(), mean)


def test_without_branches_there_is_no_credit():
    credit = prefix_credit(torch.ones(3), torch.full((3,), -1), torch.full((3,), -1), 4)
    assert credit.tolist() == [[0.0] * 4] * 3


def test_initial_rows_are_never_read():
    advantages = torch.tensor([float("nan"), 2.0])
    credit = prefix_credit(advantages, torch.tensor([-1, 0]), torch.tensor([-1, 1]), 3)
    assert credit.tolist() == [[2.0, 2.0, 0.0], [2.0, 2.0, 0.0]]
