"""A checkpoint of a run as a Hugging Face folder, for whoever samples from the policy or trains it further."""

from appo.commands.export.command import export_policy

__all__ = ["export_policy"]
