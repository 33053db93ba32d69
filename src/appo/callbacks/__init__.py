"""What happens around the training loop."""

from appo.callbacks.export import ExportPolicy
from appo.callbacks.progress import IterationProgress
from appo.callbacks.rollout import RolloutCallback

__all__ = ["ExportPolicy", "IterationProgress", "RolloutCallback"]
