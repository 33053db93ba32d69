"""Types of what Python may pass and a config cannot; the command line is told of the rest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appo.rewards import Reward
from appo.scorers import Scorer
from appo.tools import ToolProvider

if not TYPE_CHECKING:
    AnyPolicy = str
    AnyReward = Reward
    AnyScorer = Scorer
    AnyTools = tuple[ToolProvider, ...]
else:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from appo.core.batch import TrajectoryBatch
    from appo.core.trajectory import RewardResult
    from appo.scorers import Scores

    AnyPolicy = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
    AnyReward = Reward | Callable[..., float | RewardResult | Sequence[float | RewardResult | None]]
    AnyScorer = Scorer | Callable[[TrajectoryBatch, Generator], Tensor | Scores]
    AnyTools = Sequence[ToolProvider | Callable[..., Any]]
