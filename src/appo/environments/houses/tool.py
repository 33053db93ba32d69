"""The house that an agent walks through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appo.core.trajectory import ToolCall
from appo.environments.houses.visit import Visit
from appo.environments.houses.world import DOOR, PARTS, ROOMS, HouseWorld
from appo.tools.base import TOOLS, Tool, ToolError


@TOOLS.register
@dataclass(frozen=True)
class HouseTool(Tool):
    """Makes the key ("copper of Ana Ruiz", "round of Ana Ruiz"), enters a room ("cellar"), opens the door ("door").

    What a room holds follows from all that was done before, and cannot be foreseen: to the visitor it is chance, and
    yet equal visits find equal coins, so that a run can be repeated.
    """

    parameter_name = "action"

    world: HouseWorld = field(default_factory=HouseWorld)
    """Whose houses they are."""

    @property
    def name(self) -> str:
        return "house"

    def __call__(self, argument: str) -> str:
        return self.call_after((), argument)

    def call_after(self, earlier: Sequence[ToolCall], argument: str, trajectory: object = None) -> str:
        calls = [call.argument for call in earlier if call.failure is None]
        return self.answer(calls, argument)

    def answer(self, earlier: Sequence[str], call: str) -> str:
        """What the house answers.

        Args:
            earlier: calls of the visit that it answered, oldest first.
            call: the next one.

        Raises:
            ToolError: if the house does not have that, or not yet.
        """
        visit = Visit.of(earlier)
        word, of, person = call.partition(" of ")
        if of:
            return self._choose(visit, word, person)
        if word not in (*ROOMS, DOOR):
            raise ToolError(f"There are {', '.join(ROOMS)} and {DOOR}.")
        if visit.person is None or visit.metal is None or visit.shape is None:
            raise ToolError("There is no key yet.")
        if visit.is_open:
            raise ToolError("The door is open.")
        left = self.world.num_rooms(visit.person) - visit.num_entered
        if word == DOOR:
            if left:
                raise ToolError(f"Rooms left: {left}.")
            return f"Behind the door is {self.world.behind(visit.person, visit.metal, visit.shape)}."
        if not left:
            raise ToolError("Only the door is left.")
        found = self.world.coins(visit.person, (*earlier, call))
        return f"Coins in the {word}: {found}. Rooms left: {left - 1}."

    def _choose(self, visit: Visit, word: str, person: str) -> str:
        """The answer to a choice of the key's metal or shape."""
        kind = next((kind for kind, words in PARTS.items() if word in words), None)
        if kind is None or self.world.find(kind, person) is None:
            raise ToolError(f"There is no such key for {person}.")
        if visit.person not in (None, person):
            raise ToolError(f"This is the house of {visit.person}.")
        if getattr(visit, kind) is not None:
            raise ToolError(f"The {kind} is chosen.")
        chosen = visit.after(f"{word} of {person}")
        made = " and ".join(part for part in (chosen.metal, chosen.shape) if part is not None)
        rest = f" Rooms left: {self.world.num_rooms(person)}." if chosen.metal and chosen.shape else ""
        return f"The key is {made}.{rest}"
