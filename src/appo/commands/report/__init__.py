"""``appo report``: what a run has learned, for people."""

from appo.commands.report.command import write_report
from appo.commands.report.texts import branched_texts

__all__ = ["branched_texts", "write_report"]
