"""Every combination of some options, over seeds, at the same budget of generated tokens, compared."""

from appo.ablation.command import ablate
from appo.ablation.plan import Resolved

__all__ = ["Resolved", "ablate"]
