"""Every combination of some options, over seeds, at the same budget of generated tokens, compared."""

from appo.commands.ablate.command import ablate
from appo.commands.ablate.runs import Resolved

__all__ = ["Resolved", "ablate"]
