"""A visit to a house, call by call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from appo.environments.houses.world import DOOR, METAL, PARTS, ROOMS, SHAPE


@dataclass(frozen=True)
class Visit:
    """Where a visit stands.

    Attributes:
        person: whose house it is; None before the first choice.
        metal: of the key; None before it is chosen.
        shape: of the key; None before it is chosen.
        room: where the visitor is; None before a room is entered.
        num_entered: rooms that were entered.
        is_open: whether the door is.
    """

    person: str | None = None
    metal: str | None = None
    shape: str | None = None
    room: str | None = None
    num_entered: int = 0
    is_open: bool = False

    @classmethod
    def of(cls, calls: Iterable[str]) -> Visit:
        """The visit behind calls that the house answered."""
        visit = cls()
        for call in calls:
            visit = visit.after(call)
        return visit

    def after(self, call: str) -> Visit:
        """The visit behind one more call that the house answered."""
        word, _, person = call.partition(" of ")
        if word in PARTS[METAL]:
            return replace(self, person=person, metal=word)
        if word in PARTS[SHAPE]:
            return replace(self, person=person, shape=word)
        if word in ROOMS:
            return replace(self, room=word, num_entered=self.num_entered + 1)
        return replace(self, room=DOOR, is_open=True)
