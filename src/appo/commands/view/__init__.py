"""``appo view``: a run's trees in a browser, served or as a file."""

from appo.commands.view.command import view

__all__ = ["view"]
