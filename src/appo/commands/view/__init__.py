"""``appo view`` and ``appo show``: a run's trees in a browser, served or as a file, and in the terminal."""

from appo.commands.view.command import view
from appo.commands.view.show import show

__all__ = ["show", "view"]
