"""Proof, after every update of the weights, that the engine samples from the trainer's policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from appo.core.collate import collate
from appo.core.seeding import derive_seed
from appo.core.trajectory import NOT_SAMPLED, Prompt, Trajectory
from appo.engines import Completion, Engine, Request, SamplingParams
from appo.rollouts.data import Evaluate

_NUM_SEQUENCES = 4
_NUM_TOKENS = 16


@dataclass(frozen=True)
class Mismatch:
    """Distances of sampled tokens' log-probs in the engine from those in the trainer, in nats.

    Attributes:
        mean: over the tokens of a probe.
        largest: of one of them.
    """

    mean: float = 0.0
    largest: float = 0.0


class WeightProbe:
    """Samples a few short continuations of a fixed text and compares their log-probs with the trainer's.

    What is compared is what training relies on: the log-probs that the engine reports of tokens it sampled, others for
    every version. Weights that did not arrive, or arrived in the wrong place, show in every one of them.

    Args:
        engine: started, with nothing in flight.
        evaluate: adds log-probs of the trainer's policy to a batch.
        token_ids: the fixed text.
        temperature: of sampling, the same as in `evaluate`.
    """

    def __init__(self, engine: Engine, evaluate: Evaluate, token_ids: tuple[int, ...], temperature: float) -> None:
        self.engine = engine
        self.evaluate = evaluate
        self.prompt = Prompt("probe", "", token_ids, ())
        self.sampling = SamplingParams(temperature)

    def __call__(self, version: int, attempt: int = 0) -> Mismatch:
        """Samples, computes log-probs and compares.

        Args:
            version: of the policy; which tokens are sampled depends on it, and on nothing that was probed before.
            attempt: others for the same version.
        """
        for number in range(_NUM_SEQUENCES):
            seed = derive_seed("probe", version, attempt, number)
            self.engine.submit(Request(number, self.prompt.token_ids, _NUM_TOKENS, seed=seed, sampling=self.sampling))
        trajectories = []
        while self.engine.num_in_flight:
            trajectories += [_trajectory(self.prompt, completion) for completion in self.engine.step()]
        self.engine.drain()
        batch = self.evaluate(collate(trajectories))
        differences = (batch.old_log_probs - batch.behavior_log_probs)[batch.response_mask].abs()
        return Mismatch(float(differences.mean()), float(differences.max()))


def default_tolerance(engine: Engine, trainer_dtype: torch.dtype) -> float:
    """How far log-probs of two implementations of one policy may lie apart, by the coarser of two precisions.

    Args:
        engine: started.
        trainer_dtype: that the trainer computes in.

    Returns:
        Nats, in the mean over tokens.
    """
    # Of TF32, in which GPUs may multiply float32, products have the digits of float16.
    coarse = torch.float16 if torch.backends.cuda.matmul.fp32_precision == "tf32" else torch.float32
    return max(_TOLERANCES[dtype] for dtype in (engine.weight_dtype, trainer_dtype, coarse))


_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""In nats. Of float32 the largest mean met is a thirtieth of this; of bfloat16 see docs/vllm.md."""


def _trajectory(prompt: Prompt, completion: Completion) -> Trajectory:
    num_given, num_sampled = len(prompt.token_ids), len(completion.token_ids)
    return Trajectory(
        prompt=prompt,
        token_ids=torch.tensor(prompt.token_ids + completion.token_ids),
        response_mask=torch.tensor([False] * num_given + [True] * num_sampled),
        behavior_log_probs=torch.tensor([0.0] * num_given + list(completion.behavior_log_probs)),
        policy_versions=torch.tensor([NOT_SAMPLED] * num_given + [completion.policy_version] * num_sampled),
        segments=(),
        tool_calls=(),
        finish_reason="length",
    )
