"""What every engine offers: sampling continuations of token sequences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from appo.core.registry import Registry

Session = TypeVar("Session")

FIRST_VERSION = 0
"""Policy version of the weights that an engine starts with."""


class LostUpdateError(ConnectionError):
    """New weights did not arrive, and may when they are brought again."""


@dataclass(frozen=True)
class SamplingParams:
    """How next tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p: smallest share of probability that the kept tokens hold together; 1 keeps all.
        top_k: number of most likely tokens kept; 0 keeps all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0.0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")


@dataclass(frozen=True)
class Request:
    """One sequence to continue.

    Attributes:
        id: chosen by the caller, unique among the requests in flight.
        token_ids: everything so far, prompt included.
        max_tokens: most tokens to sample, at least 1.
        stop: strings that end the continuation as soon as its text contains one; their tokens are kept. A character
            whose bytes are split between request and continuation may count as text of either.
        seed: of this request's own random numbers; the result depends on it and not on what else is in flight.
        sampling: how tokens are drawn.
    """

    id: int
    token_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int = 0
    sampling: SamplingParams = SamplingParams()


@dataclass(frozen=True)
class Completion:
    """What an engine sampled for one request.

    Attributes:
        id: of the request.
        token_ids: the sampled ids, the end token or the tokens of the stop string included.
        behavior_log_probs: of each id, under the distribution it was drawn from: after temperature, top-k and top-p.
            Greedy sampling reports the plain log-softmax.
        finish_reason: `eos`, `stop` (a stop string) or `length` (`max_tokens`).
        stop_string: the one that ended it, else None.
        cached_tokens: tokens of the request that were served from a prefix cache.
        policy_version: of the weights that sampled.
    """

    id: int
    token_ids: tuple[int, ...]
    behavior_log_probs: tuple[float, ...]
    finish_reason: Literal["eos", "stop", "length"]
    stop_string: str | None
    cached_tokens: int
    policy_version: int


class Engine(ABC):
    """Samples continuations, many at once; each finishes on its own.

    A caller submits requests at any time, calls `step` until it has what it waits for, and may submit the
    continuation of one conversation while others still generate. Weights may only be updated while nothing is in
    flight.
    """

    # Not annotated: the command line reads a base's annotations in the module of the component, which may lack names.
    is_asynchronous = False
    """Whether it samples without the trainer's devices and memory, so that the policy can be trained meanwhile. One
    thread at a time calls it then, which need not be that of the trainer."""

    takes_first_device = False
    """Whether it samples on GPU 0 of what the process sees, in a training in one process."""

    @property
    def is_shared(self) -> bool:
        """Whether several processes of the training share this engine, and take every step of it together."""
        return False

    max_length: int = 0
    """Tokens of a sequence, prompt and continuation, at most; 0 takes the policy's positions."""

    @abstractmethod
    def start(self, policy: str) -> None:
        """Loads what is needed to sample from a policy; a second call without `stop` between is an error.

        Args:
            policy: Hugging Face model folder or name; its tokenizer decides the end token and the text of stop strings.
        """

    @abstractmethod
    def stop(self) -> None:
        """Frees everything; `start` may follow. Does nothing if the engine is not started."""

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ValueError: if the request can never be served: empty, or longer than the policy's positions.
        """

    @abstractmethod
    def step(self) -> list[Completion]:
        """Advances all requests in flight by at least one token and returns those that finished, which may be none."""

    def drain(self) -> None:  # noqa: B027 - most engines belong to one process
        """Waits until no process that shares this engine has requests in flight; does nothing by default.

        Called by each of several processes, equally often, when it has all that it had asked for.
        """

    @property
    @abstractmethod
    def num_in_flight(self) -> int:
        """Requests submitted and not yet returned."""

    @abstractmethod
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes over the trainer's weights.

        Args:
            weights: parameter name of the Hugging Face model and tensor, read once, one at a time.
            version: of the policy from now on; higher than the one before.

        Raises:
            RuntimeError: if requests are in flight.
            ValueError: if a name or shape does not fit the policy, or one is missing.
            LostUpdateError: in every process, if all weights must be brought once more.
        """

    def sleep(self, weights_follow: bool = False) -> None:  # noqa: B027 - an engine may well have nothing to give back
        """Gives back the memory that only sampling needs, until the next request or update; does nothing by default.

        Called when sampling is over for a while, with nothing in flight. A prefix cache need not survive it.

        Args:
            weights_follow: whether an update comes before the next request, so that an engine may drop its weights.
        """

    @property
    def has_weights(self) -> bool:
        """Whether it can be asked: not so after a `sleep` that dropped the weights, until an update brings them."""
        return True

    @property
    @abstractmethod
    def weight_dtype(self) -> torch.dtype:
        """Of the weights that sample; it decides how closely log-probs can agree with the trainer's."""


def started(session: Session | None) -> Session:
    """What an engine holds between `Engine.start` and `Engine.stop`.

    Raises:
        RuntimeError: if it holds nothing.
    """
    if session is None:
        raise RuntimeError("the engine must be started first")
    return session


ENGINES: Registry[Engine] = Registry("engine", group="appo.engines")
"""Engines by class name, those of plug-ins included."""
