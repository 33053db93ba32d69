"""A checkpoint of a run as a Hugging Face folder, for whoever samples from the policy or trains it further."""

from appo.commands.export.command import export_policy
from appo.commands.export.run_config import policy_of_run

__all__ = ["export_policy", "policy_of_run"]
