"""Sections of a run's configuration that belong to no component."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

from appo.engines import SamplingParams
from appo.rewards import OnFailure
from appo.rollouts import OnTruncation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingOptions:
    """How trajectories are sampled, and how far ahead of their training."""

    temperature: float = 1.0
    """Divides the logits, in sampling and in the loss alike. Tokens are drawn from all of the distribution."""
    lag: Literal[0, 1] = 0
    """0 trains on roots in the iteration that sampled them; 1 trains on those of the iteration before and samples the
    next ones together with the branches, so that the policy has changed for every prompt."""
    overlap: bool | None = None
    """With a lag of 1, goes on sampling the next roots in a thread of its own while the policy is trained; the engine
    must sample elsewhere, as `VLLMServerEngine` does. `null`: does so where it can. The likelihood gain of such roots
    compares with log-probs of the engine: the policy is updated before it could be asked for its own."""
    replacement_rounds: int = 0
    """How often the prompts of an iteration that have no gradient, since their rewards do not differ, are replaced by
    others; those that are left then stay. 0 replaces none. Replacements are sampled by the policy as it is, whatever
    `rollout.branching.when` and `rollout.sampling.lag` say."""
    deterministic: bool = False
    """Takes up the answers of tools at fixed steps of the engine, so that two runs of one seed, on one machine with as
    many threads, batch the same sequences and are equal to the last bit; the engine waits for tools that are slow."""
    max_mismatch: float | None = None
    """Largest mean distance, in nats, of log-probs of the engine from the trainer's that a check after each update of
    the weights may find. `null`: 1e-4 in float32, 0.02 in float16 and TF32, and 0.1 in bfloat16."""

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"rollout.sampling.temperature must be positive, got {self.temperature}")
        if self.replacement_rounds < 0:
            raise ValueError(f"rollout.sampling.replacement_rounds must not be negative, got {self.replacement_rounds}")
        if self.deterministic and self.overlap:
            raise ValueError(
                "rollout.sampling.overlap must not be true with rollout.sampling.deterministic: "
                "what is sampled beside the training joins when it can"
            )
        if self.max_mismatch is not None and not self.max_mismatch > 0.0:
            raise ValueError(f"rollout.sampling.max_mismatch must be positive, got {self.max_mismatch}")
        _ = self.params

    @property
    def params(self) -> SamplingParams:
        """How tokens are drawn."""
        return SamplingParams(self.temperature)


@dataclass(frozen=True)
class RewardOptions:
    """How rewards are computed."""

    workers: int = 16
    """Trajectories that are scored at once."""
    timeout_s: float = 120.0
    """Seconds that scoring one of them may take."""
    on_failure: OnFailure = "error"
    """`error` ends the run when a trajectory cannot be scored; `zero` gives it 0 and goes on, and metrics count it."""
    truncated: OnTruncation = "penalize"
    """What is made of roots that reach `rollout.limits.max_response_tokens`: `penalize` trains them with the reward of
    what is there, `mask` neither trains them nor compares others with them. A branch that does is always left out: it
    says nothing of its branch point."""

    def __post_init__(self) -> None:
        if self.truncated not in get_args(OnTruncation):
            raise ValueError(f"rollout.rewards.truncated must be penalize or mask, got {self.truncated!r}")


@dataclass(frozen=True)
class EvaluationOptions:
    """How the policy is evaluated."""

    samples: int = 1
    """Trajectories of a question."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Smallest share of probability that the kept tokens hold together; 1 keeps all."""
    top_k: int = 0
    """Number of most likely tokens kept; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"rollout.evaluation.samples must be positive, got {self.samples}")
        if self.samples > 1 and self.temperature == 0.0:
            log.warning(
                "rollout.evaluation.samples=%d at temperature 0 draws one trajectory: pass@k and maj@k say "
                "nothing; rollout.evaluation.temperature=1 draws different ones",
                self.samples,
            )
        _ = self.params

    @property
    def params(self) -> SamplingParams:
        """How tokens are drawn."""
        return SamplingParams(self.temperature, self.top_p, self.top_k)
