"""Engines of several processes that are parts of one: they take up the same requests and the same steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.distributed as dist

from appo.engines.base import Request


@dataclass(frozen=True)
class NamedRequest:
    """A request under a name that is its own among the requests of all processes.

    Attributes:
        key: such as ``1:17``, for request 17 of process 1 of the group.
        request: as its process submitted it.
    """

    key: str
    request: Request


@dataclass(eq=False)
class SynchronizedSteps:
    """What the processes of one engine tell each other before every step.

    Each submits requests of its own, whenever it likes. Nothing that decides on the next tokens may differ between the
    processes: so all of them take up all requests, in one order, and none takes a step by itself.

    Attributes:
        group: of these processes, on the CPU.
    """

    group: dist.ProcessGroup
    _fresh: list[Request] = field(default_factory=list)

    def submit(self, request: Request) -> None:
        """Queues a request of this process for the next exchange."""
        self._fresh.append(request)

    def exchange(self, is_done: bool) -> tuple[list[NamedRequest], bool]:
        """Waits for all processes.

        Args:
            is_done: this process asks nothing more until the others have what they wait for.

        Returns:
            The new requests of all, in the same order on each; and whether all of them are done.
        """
        mine = (is_done, self._fresh)
        self._fresh = []
        brought = [mine] * dist.get_world_size(self.group)
        dist.all_gather_object(brought, mine, group=self.group)
        named = [
            NamedRequest(f"{process}:{request.id}", request)
            for process, (_, requests) in enumerate(brought)
            for request in requests
        ]
        return named, all(done for done, _ in brought)

    def is_own(self, key: str) -> bool:
        """Whether this process has submitted the request of that name."""
        return key.startswith(f"{dist.get_rank(self.group)}:")
