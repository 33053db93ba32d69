"""``appo new``: a folder with a task of one's own that runs as it stands."""

from __future__ import annotations

from appo.commands.new.command import new

__all__ = ["new"]
