"""Weights on their way to servers by vLLM's own transfer: broadcast once, to the workers of all of them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from appo.core.extras import import_extra
from appo.engines.base import LostUpdateError
from appo.engines.vllm_server.answers import ServerError
from appo.engines.vllm_server.pool import ServerPool
from appo.engines.vllm_server.server import Server
from appo.engines.vllm_server.transfer_backends import BACKENDS, free_port
from appo.engines.vllm_server.transfer_client import TransferClient
from appo.engines.vllm_server.weight_files import vllm_weights
from appo.policy.weight_layout import WeightLayout
from appo.workers.loops import LoopThread
from appo.workers.threads import ThreadPool

log = logging.getLogger(__name__)

_BUFFER_BYTES = 256 * 2**20
"""Of tensors that are sent together; trainer and servers have room for two or three of these."""

_PAUSE_S = 1.0
"""Before weights that were lost are sent again."""

_LOOK_S = 0.1
"""Between looks whether a server has failed while the group is made."""


class WeightTransfer:
    """Sends weights from this process to all servers that can be reached.

    Servers and this process are a group, which is made anew as soon as one of them is another: gone, back, or started
    anew.

    Args:
        pool: of the servers.
        loop: of the pool.
        layout: of the policy.
        dtype: of the servers' weights.
        backend: one of `BACKENDS`.
        address: of this machine, at which the servers reach it.

    Raises:
        MissingPackageError: if vLLM is not installed here.
        ValueError: if the address is not one of this machine.
    """

    def __init__(
        self, pool: ServerPool, loop: LoopThread, layout: WeightLayout, dtype: torch.dtype, backend: str, address: str
    ) -> None:
        self._pool = pool
        self._loop = loop
        self._address = address
        free_port(address)  # before anything is loaded or sent
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        chosen = BACKENDS[backend]
        self._init_info = getattr(_import(chosen.module), chosen.init_info)
        self._factory = _import("vllm.distributed.weight_transfer.factory")
        base = _import("vllm.distributed.weight_transfer.base")
        empty = ((name, torch.empty(shape, device="meta")) for name, shape in layout.shapes.items())
        sent = [(name, tensor.shape) for name, tensor in vllm_weights(layout, empty)]
        metadata = [base.ParamMeta(name, _sent_dtype(len(shape), dtype), tuple(shape)) for name, shape in sent]
        largest = max(meta.dtype.itemsize * shape.numel() for meta, (_, shape) in zip(metadata, sent, strict=True))
        self._buffer_bytes = max(_BUFFER_BYTES, largest)
        self._source = _Source(metadata, dtype, chosen.device)
        self._client = TransferClient(loop, [], self._end)
        self._trainer: Any = None
        self._ending = threading.Lock()
        self._tag = ""
        """Of what was sent last."""
        self._failing_since: float | None = None

    def send(self, weights: Iterable[tuple[str, Tensor]], tag: str) -> None:
        """Brings weights to every server that can be reached.

        Args:
            weights: name and tensor, read once, to the end, in the order of the layout.
            tag: what servers call them from then on.

        Raises:
            LostUpdateError: if they have reached none.
            ConnectionError: if that has been so for as long as servers may fail, or none can be reached.
        """
        if self._failing_since is not None:
            time.sleep(_PAUSE_S)
        self._source.take(weights)
        with ExitStack() as stack:
            stack.callback(self.close)
            servers = self._loop.run(self._pool.reachable())
            try:
                self._connect(servers)
                self._client.tag = tag
                self._source.is_lost = False
                self._trainer.send_weights()
            except torch.OutOfMemoryError:
                raise
            # vLLM asserts that its group is there, which ends as soon as a server fails.
            except (ServerError, RuntimeError, OSError, AssertionError) as error:
                if self._source.is_gathering:  # not on the way to the servers
                    raise
                reason = self._client.failure or error
                if isinstance(reason, ValueError):  # refused
                    raise reason from error
                self.close()
                self._source.read_on()
                raise self._lost(tag, reason) from error
            stack.pop_all()
        log.info("%d of %d servers have weights %s", self._num_reached(tag), len(self._pool.servers), tag)
        self._tag, self._failing_since = tag, None

    def close(self) -> None:
        """Leaves the group, and ends what is under way; the next weights make another."""
        self._client.close()
        for server in self._client.servers:
            server.tag = None
        self._end()

    def _end(self) -> None:
        """Frees whoever waits for a server that does not come; called in two threads when one has failed."""
        self._source.is_lost = True
        with self._ending:
            trainer, self._trainer = self._trainer, None
        if trainer is not None:  # vLLM would end it twice, which NCCL does not survive
            trainer.shutdown()

    def _num_reached(self, tag: str) -> int:
        return sum(server.tag == tag for server in self._client.servers)

    def _connect(self, servers: list[Server]) -> None:
        if (
            self._trainer is not None
            and servers == self._client.servers
            and all(server.tag == self._tag for server in servers)
        ):
            return
        self.close()
        self._client = TransferClient(self._loop, servers, self._end)
        init_info = self._init_info(
            rank=0,
            master_address=self._address,
            master_port=free_port(self._address),
            world_size=1 + self._client.count_workers(),
            packed_buffer_size_bytes=self._buffer_bytes,
        )
        # In a thread that can be left behind: who waits there for a server that has died meanwhile waits for ever. For
        # twice the time, since the call to a server that hangs ends sooner and names it.
        threads: ThreadPool[Any] = ThreadPool(1, "appo-weight-transfer")
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        threads.submit(0, lambda: self._open(init_info, device), 2 * self._pool.timeout_s)
        while not (done := threads.finished(_LOOK_S)) and self._client.failure is None:
            pass
        threads.close()
        trainer = done.get(0, self._client.failure)
        if isinstance(trainer, BaseException):
            raise trainer
        self._trainer = trainer

    def _open(self, init_info: Any, device: int | None) -> Any:
        if device is not None:  # a thread has one of its own
            torch.cuda.set_device(device)
        factory = self._factory.WeightTransferTrainerFactory
        return factory.trainer_init(init_info, client=self._client, source=self._source)

    def _lost(self, tag: str, error: Exception) -> ConnectionError:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        what = f"weights {tag} did not reach the servers ({reason})"
        if now - self._failing_since <= self._pool.recovery_s:
            return LostUpdateError(what)
        return ConnectionError(
            f"{what} for {self._pool.recovery_s:g} s: started again, the run goes on from its checkpoint"
        )


class _Source:
    """Weights as vLLM's trainer reads them, its `WeightSource`.

    Args:
        metadata: name, dtype and shape of every tensor, in their order.
        dtype: of the servers' weights.
        device: kind of device that they must be on.
    """

    def __init__(self, metadata: list[Any], dtype: torch.dtype, device: str) -> None:
        self._metadata = metadata
        self._dtype = dtype
        self._device = device
        self._weights: Iterator[tuple[str, Tensor]] = iter(())
        self.is_gathering = False
        """Whether the next tensor was asked for and has not come; where it fails to, that is not the servers' doing."""
        self.is_lost = False
        """Whether nobody receives what is read."""

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sets what is read next."""
        self._weights, self.is_gathering = iter(weights), False
        if self._device == "cuda":  # they are read in other streams than those they were computed in
            torch.cuda.synchronize()

    def read_on(self) -> None:
        """Reads what is left, since other processes gather it too."""
        for _ in self._weights:
            pass

    def metadata(self) -> list[Any]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        while True:
            self.is_gathering = True
            item = next(self._weights, None)
            self.is_gathering = False
            if item is None:
                return
            if self.is_lost:
                raise ServerError("a server has failed")
            name, tensor = item
            yield name, tensor.detach().to(self._device, _sent_dtype(tensor.ndim, self._dtype))


def _import(module: str) -> Any:
    user = "rollout.engine=VLLMServerEngine, with servers that were started with --weight-transfer-config,"
    return import_extra(module, user, "vllm", ", or start the servers without it")


def _sent_dtype(num_dimensions: int, dtype: torch.dtype) -> torch.dtype:
    """What has one dimension takes next to nothing, and servers may keep it in float32."""
    return dtype if num_dimensions > 1 else torch.float32
