import torch

from appo.advantages import SharedPrefixAdvantage, TreeAdvantage
from tests.advantages.contexts import NO_CONTEXT
from tests.advantages.released_example import released_example


def test_shared_prefix_advantage_by_hand():
    # Deviations from the mean 1/8: 7/8, -1/8, 3/8, -9/8. Row 0 shares 0..1 with rows 2 and 3, and 2..3 with row 3.
    advantages = SharedPrefixAdvantage(std="none")(released_example(), NO_CONTEXT)
    both, one = (7 + 3 - 9) / 8 / 3, (7 - 9) / 8 / 2
    expected = [
        [both, both, one, one, 7 / 8],
        [-1 / 8] * 4 + [0.0],
        [both, both, 3 / 8, 3 / 8, 3 / 8],
        [both, both, one, one, -9 / 8],
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_tree_advantage_by_hand():
    # Within the prompt: 7/8, -1/8, 3/8, -9/8. Rows 0, 2, 3 are a tree of mean 1/6; row 1 is alone in its own.
    advantages = TreeAdvantage(std="none")(released_example(), NO_CONTEXT)[:, 0]
    torch.testing.assert_close(advantages, torch.tensor([7 / 8 + 5 / 6, -1 / 8, 3 / 8 + 1 / 3, -9 / 8 - 7 / 6]))
