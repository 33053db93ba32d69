"""Houses: two clues describe the key, rooms with coins lie before the door, and every key leads somewhere else."""

from appo.environments.houses.demonstrations import HouseDemonstrations
from appo.environments.houses.influence import influence, success
from appo.environments.houses.problems import HouseProblem, HouseProblems
from appo.environments.houses.records import Choice, coins, find_choices, states
from appo.environments.houses.tool import HouseTool
from appo.environments.houses.visit import Visit
from appo.environments.houses.world import HouseSearch, HouseWorld

__all__ = [
    "Choice",
    "HouseDemonstrations",
    "HouseProblem",
    "HouseProblems",
    "HouseSearch",
    "HouseTool",
    "HouseWorld",
    "Visit",
    "coins",
    "find_choices",
    "influence",
    "states",
    "success",
]
