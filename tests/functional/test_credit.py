import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appo.functional import prefix_credit


def test_the_released_example_by_hand():
    # Branches of row 0 with advantages 1 and -1 share positions 0..1 and 0..3.
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    credit = prefix_credit(advantages, torch.tensor([-1, -1, 0, 0]), torch.tensor([-1, -1, 1, 3]), 5)
    # positions 0, 1: both, mean 0; positions 2, 3: the second alone, -1; position 4: none
    assert credit.tolist() == [[0, 0, -1, -1, 0], [0] * 5, [0] * 5, [0] * 5]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.floats(-3, 3)), max_size=10))
def test_equals_the_definition(num_initial, branches):
    branches = [(row % num_initial, position, value) for row, position, value in branches]
    advantages = torch.tensor([9.0] * num_initial + [value for *_, value in branches], dtype=torch.float64)
    parent = torch.tensor([-1] * num_initial + [row for row, *_ in branches])
    positions = torch.tensor([-1] * num_initial + [position for _, position, _ in branches])
    credit = prefix_credit(advantages, parent, positions, 8)
    for row in range(len(advantages)):
        for t in range(8):
            sharing = [value for source, position, value in branches if source == row and position >= t]
            expected = sum(sharing) / len(sharing) if sharing else 0.0
            torch.testing.assert_close(credit[row, t].item(), expected)


def test_without_branches_there_is_no_credit():
    credit = prefix_credit(torch.ones(3), torch.full((3,), -1), torch.full((3,), -1), 4)
    assert credit.tolist() == [[0.0] * 4] * 3


def test_initial_rows_are_never_read():
    advantages = torch.tensor([float("nan"), 2.0])
    credit = prefix_credit(advantages, torch.tensor([-1, 0]), torch.tensor([-1, 1]), 3)
    assert credit.tolist() == [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
