"""Attacks on the Python tool, which show on a machine that its walls hold."""

from appo.tools.python.attacks import bombs, files, processes, shared, system_calls
from appo.tools.python.attacks.attack import Attack
from appo.tools.python.sandbox.settings import Wall

ATTACKS: tuple[Attack, ...] = (
    *files.ATTACKS,
    *processes.ATTACKS,
    *shared.ATTACKS,
    *bombs.ATTACKS,
    *system_calls.ATTACKS,
)


def attacks_on(wall: Wall) -> list[Attack]:
    """Those that are made against a wall."""
    return [attack for attack in ATTACKS if attack.wall in (None, wall)]
