"""Every kind of component that a config names by its class, plug-ins included."""

from __future__ import annotations

from typing import Any

from appo.advantages import ADVANTAGES
from appo.core.registry import Registry
from appo.engines import ENGINES
from appo.losses import LOSSES
from appo.prompts import PROMPT_SOURCES
from appo.rewards import REWARDS
from appo.scorers import SCORERS
from appo.sft import CONVERSATION_SOURCES
from appo.tools import CALL_SYNTAXES, SEARCH_BACKENDS, TOOLS

REGISTRIES: tuple[Registry[Any], ...] = (
    SCORERS,
    ADVANTAGES,
    LOSSES,
    REWARDS,
    TOOLS,
    SEARCH_BACKENDS,
    CALL_SYNTAXES,
    ENGINES,
    PROMPT_SOURCES,
    CONVERSATION_SOURCES,
)


def load_plugins() -> None:
    """Registers the components of installed packages, so that their names resolve.

    Raises:
        Exception: whatever importing one raises, with a note that names it.
    """
    for registry in REGISTRIES:
        registry.load_plugins()


def unknown_component(key: str, name: str) -> str:
    """What the registry of the component that `key` takes has to say of a name that is not in it."""
    for word in reversed(key.split(".")):
        for registry in REGISTRIES:
            if registry.kind.split()[-1].startswith(word.rstrip("s")) and name not in registry:
                return registry.unknown(name)
    return f"no class has the import path {name!r}"
