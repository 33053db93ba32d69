"""``appo report``: what a run has learned, for people."""

from appo.commands.report.command import branched_texts, write_report

__all__ = ["branched_texts", "write_report"]
