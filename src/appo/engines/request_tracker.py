"""What an engine is answerable for: the requests in flight and the weights that serve them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from appo.engines.base import FIRST_VERSION, Request


@dataclass(eq=False)
class RequestTracker:
    """Keeps the promises that all engines make about requests and versions.

    Attributes:
        max_length: tokens of a sequence, prompt and continuation, at most.
        vocab_size: of the policy, padding included.
        version: of the weights that sample.
        has_weights: False once an update failed half way or the weights were dropped, until an update succeeds.
        in_flight: requests submitted and not yet returned, by id.
    """

    max_length: int
    vocab_size: int
    version: int = FIRST_VERSION
    has_weights: bool = True
    in_flight: dict[int, Request] = field(default_factory=dict)

    def admit(self, request: Request) -> None:
        """Takes a request into flight.

        Raises:
            ValueError: if it can never be served.
            RuntimeError: if there are no weights, or those of two policies.
        """
        if not self.has_weights:
            raise RuntimeError(
                "weights must be updated before a request: the last update failed, or they were dropped while asleep"
            )
        if request.id in self.in_flight:
            raise ValueError(f"id must be unique among the requests in flight, got {request.id}")
        self._check(request)
        self.in_flight[request.id] = request

    @contextmanager
    def updating(self, version: int) -> Iterator[None]:
        """Surrounds the copying of new weights; they are not to be sampled from unless all of it succeeds.

        Raises:
            RuntimeError: if requests are in flight.
            ValueError: if the version does not rise; to an engine without weights the present one may come again.
        """
        if self.in_flight:
            raise RuntimeError(f"weights must not be updated with requests in flight, got {len(self.in_flight)}")
        if version < self.version or (version == self.version and self.has_weights):
            raise ValueError(f"version must be higher than the present {self.version}, got {version}")
        self.has_weights = False
        yield
        self.has_weights = True
        self.version = version

    def _check(self, request: Request) -> None:
        name = f"of request {request.id}"
        if not request.token_ids:
            raise ValueError(f"token_ids {name} must not be empty")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens {name} must be at least 1, got {request.max_tokens}")
        if len(request.token_ids) + request.max_tokens > self.max_length:
            raise ValueError(
                f"token_ids and max_tokens {name} must fit into {self.max_length} positions, "
                f"got {len(request.token_ids)} + {request.max_tokens}"
            )
        if min(request.token_ids) < 0 or max(request.token_ids) >= self.vocab_size:
            raise ValueError(
                f"token_ids {name} must lie in 0 .. {self.vocab_size - 1}, "
                f"got {min(request.token_ids)} .. {max(request.token_ids)}"
            )
        if "" in request.stop:
            raise ValueError(f"stop {name} must not hold an empty string, got {request.stop}")
