"""Trees of any depth against a walk from each row to its root."""

import torch

from appo.functional import first_fork, shared_mean, token_owners, tree_roots


def random_forest(generator: torch.Generator, num_rows: int = 12, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Parents and branch positions of trees whose depth is up to `num_rows`."""
    parent, position = torch.full((num_rows,), -1), torch.full((num_rows,), -1)
    for row in range(1, num_rows):
        parent[row] = torch.randint(-1, row, (), generator=generator)
        if parent[row] >= 0:
            position[row] = torch.randint(0, length - 1, (), generator=generator)
    return parent, position


def owner_of(row: int, t: int, parent: torch.Tensor, position: torch.Tensor) -> int:
    while parent[row] >= 0 and t <= position[row]:
        row = int(parent[row])
    return row


def test_owners_and_roots_are_those_of_a_walk_up_the_tree() -> None:
    for seed in range(20):
        parent, position = random_forest(torch.Generator().manual_seed(seed))
        expected = [[owner_of(row, t, parent, position) for t in range(9)] for row in range(12)]
        assert token_owners(parent, position, 9).tolist() == expected
        assert tree_roots(parent).tolist() == [owner_of(row, -1, parent, position) for row in range(12)]


def test_shared_tokens_have_the_mean_of_the_rows_that_share_them() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        parent, position = random_forest(generator)
        owners = token_owners(parent, position, 9)
        counted = torch.rand(12, 9, generator=generator) < 0.7
        values = torch.randn(12, 9, generator=generator, dtype=torch.float64)
        mean = shared_mean(values, owners, counted)
        by_row = shared_mean(values[:, 0], owners, counted)
        for row in range(12):
            for t in range(9):
                sharers = [r for r in range(12) if owners[r, t] == owners[row, t] and counted[r, t]]
                expected = sum(float(values[r, t]) for r in sharers) / max(1, len(sharers))
                torch.testing.assert_close(float(mean[row, t]), expected)
                expected = sum(float(values[r, 0]) for r in sharers) / max(1, len(sharers))
                torch.testing.assert_close(float(by_row[row, t]), expected)


def test_a_fork_is_behind_the_earliest_point_at_which_endings_part() -> None:
    for seed in range(20):
        parent, position = random_forest(torch.Generator().manual_seed(seed))
        for row, fork in enumerate(first_fork(parent, position, 9).tolist()):
            points = [int(position[r]) for r in range(12) if parent[r] == row]
            points += [int(position[row])] if parent[row] >= 0 else []
            assert fork == min([point + 1 for point in points], default=9)
