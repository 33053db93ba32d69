from dataclasses import replace

import pytest
import torch

from appo.advantages import EntropyAwareAdvantage, GroupAdvantage
from tests.advantages.contexts import NO_CONTEXT
from tests.advantages.released_example import released_example


def test_entropy_aware_advantage_by_hand():
    example = released_example()
    entropies = torch.where(torch.arange(5) % 2 == 0, 1.0, 3.0).expand(4, 5)
    values = entropies[example.response_mask]
    z = (entropies - values.mean()) / (values.std(correction=0) + 1e-6)
    advantages = EntropyAwareAdvantage(std="none", weight=0.5)(replace(example, entropies=entropies), NO_CONTEXT)
    by_row = torch.tensor([7 / 8, -1 / 8, 3 / 8, -9 / 8]).unsqueeze(-1)
    torch.testing.assert_close(advantages, (by_row * (1 + 0.5 * z)).where(example.response_mask, 0.0))
    plain = EntropyAwareAdvantage(std="none", weight=0.0)(replace(example, entropies=entropies), NO_CONTEXT)
    torch.testing.assert_close(plain, GroupAdvantage(std="none")(example, NO_CONTEXT))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"weight must not be negative, got -0.1"):
        EntropyAwareAdvantage(weight=-0.1)
