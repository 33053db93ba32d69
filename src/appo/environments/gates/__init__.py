"""Gates: walks from person to person on which every turn is a decision, and signs say which way is right."""

from appo.environments.gates.demonstrations import GateDemonstrations
from appo.environments.gates.influence import influence, success
from appo.environments.gates.problems import GateProblem, GateProblems, Route
from appo.environments.gates.turns import Turn, find_turns
from appo.environments.gates.world import GateSearch, GateWorld

__all__ = [
    "GateDemonstrations",
    "GateProblem",
    "GateProblems",
    "GateSearch",
    "GateWorld",
    "Route",
    "Turn",
    "find_turns",
    "influence",
    "success",
]
