"""What happens around the training loop."""

from appo.training.callbacks.checkpoints import IterationCheckpoints, LastCheckpoint
from appo.training.callbacks.evaluation import EvaluationCallback
from appo.training.callbacks.export import ExportPolicy
from appo.training.callbacks.health import HealthCheck
from appo.training.callbacks.progress import IterationProgress
from appo.training.callbacks.rollout import RolloutCallback
from appo.training.callbacks.summary import RunSummary
from appo.training.callbacks.termination import EndOnSignal

__all__ = [
    "EndOnSignal",
    "EvaluationCallback",
    "ExportPolicy",
    "HealthCheck",
    "IterationCheckpoints",
    "IterationProgress",
    "LastCheckpoint",
    "RolloutCallback",
    "RunSummary",
]
