from __future__ import annotations

import pytest

from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.problems import WorldProblems
from appo.environments.world import World
from appo.sft import WorldConversations


def test_a_world_of_another_seed_is_another_source():
    other = WorldConversations(WorldDemonstrations(WorldProblems(world=World(seed=1), num_train=8)))
    with pytest.raises(ValueError, match="search must answer"):
        other.load("train")
