"""vLLM servers that run elsewhere, over their own HTTP interface."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from appo.core.secrets import refuse_secrets, refuse_secrets_in_url
from appo.distributed import comm
from appo.engines.base import ENGINES, FIRST_VERSION, Completion, Engine, LostUpdateError, Request, started
from appo.engines.hf.stopping import end_token_ids, load_generation_config
from appo.engines.request_tracker import RequestTracker
from appo.engines.vllm_server.messages import ServingConfig, completion_of, request_body, serving_config
from appo.engines.vllm_server.pool import ServerPool, Weights
from appo.engines.vllm_server.transfer_backends import choose_backend, local_address
from appo.engines.vllm_server.weight_files import WeightFolder, vllm_weights
from appo.engines.vllm_server.weight_transfer import WeightTransfer
from appo.policy.weight_layout import WeightLayout
from appo.workers.loops import LoopThread

_POLL_S = 0.02
"""How long a step waits for something to finish: tools are looked after in between."""

_AFFINITY_TOKENS = 64
"""Leading tokens that decide which server a request belongs to: those of one prompt meet in one prefix cache."""


@ENGINES.register
@dataclass
class VLLMServerEngine(Engine):
    """Samples with one or several ``vllm serve`` that run elsewhere.

    A request whose server dies goes to another one, or waits until one is back. Every answer names the weights that
    sampled it; a server that was started anew gets the present ones before it is asked. How a server must be started
    stands in ``docs/vllm.md``.

    The processes of a training on several ask the same servers; the first one alone brings weights to them.
    """

    is_asynchronous = True
    addresses: list[str] = field(default_factory=lambda: ["http://localhost:8000"])
    """Of the servers; those of one address are one server."""
    max_length: int = 0
    """Tokens of a sequence, prompt and continuation, at most; 0 takes what the servers were started with."""
    weights_folder: str | None = None
    """Folder that the servers see under the same path; new weights go through it. None makes a temporary one, for
    servers on this machine."""
    transfer_address: str | None = None
    """Address at which the servers reach the machine of the first process, where weights go by vLLM's own transfer.
    None takes that of the way to the servers."""
    request_timeout_s: float = 600.0
    """Of one request; one that takes longer is sent again."""
    recovery_timeout_s: float = 300.0
    """How long all servers may fail before the run ends with an error."""
    start_timeout_s: float = 300.0
    """How long to wait for each server in the beginning."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of every request; keys come from environment variables: ``Authorization: "Bearer {VLLM_KEY}"``."""
    _session: _Session | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError("addresses must name at least one server, got none")
        for address in self.addresses:
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"addresses must begin with http:// or https://, got {address!r}")
            refuse_secrets_in_url(address, "addresses")
        for name in ("request_timeout_s", "recovery_timeout_s", "start_timeout_s"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        refuse_secrets(self.headers, "rollout.engine.headers")
        if self.max_length < 0:
            raise ValueError(f"max_length must not be negative, got {self.max_length}")

    def start(self, policy: str) -> None:
        if self._session is not None:
            raise RuntimeError("the engine must be stopped before it is started again")
        config = AutoConfig.from_pretrained(policy)
        ends = end_token_ids(load_generation_config(policy, config), AutoTokenizer.from_pretrained(policy))
        layout = WeightLayout.of_policy(policy)
        folder = WeightFolder(self.weights_folder) if comm.rank() == 0 else None
        run = comm.broadcast(uuid.uuid4().hex[:8])
        pool = ServerPool(
            self.addresses,
            self.headers,
            self.request_timeout_s,
            self.recovery_timeout_s,
            Weights(f"{run}-{FIRST_VERSION}", None),
            brings_weights=comm.rank() == 0,
        )
        loop = LoopThread("appo-vllm-servers")
        try:
            served = [loop.run(serving_config(server, self.start_timeout_s)) for server in pool.servers]
            length = min(one.max_length for one in served)
            if self.max_length > length:
                raise ValueError(
                    f"max_length must not exceed the servers' --max-model-len {length}, got {self.max_length}"
                )
            transfer = self._transfer(pool, loop, layout, served)
            _switch(pool, loop, Weights(f"{run}-{FIRST_VERSION}", _first_weights(policy, layout, folder)))
        except BaseException:
            loop.run(pool.close())
            loop.close()
            if folder is not None:
                folder.close()
            raise
        tracker = RequestTracker(self.max_length or length, config.get_text_config(decoder=True).vocab_size)
        self._session = _Session(
            run,
            pool,
            loop,
            tracker,
            layout,
            folder,
            sorted(ends),
            served[0].dtype,
            transfer,
        )
        # Weights that are broadcast do not come to who asks, so somebody must look who is there.
        if comm.broadcast(transfer is not None) or (comm.num_ranks() > 1 and comm.rank() == 0):
            self._session.keeper = loop.spawn(pool.keep())

    def stop(self) -> None:
        if self._session is None:
            return
        session, self._session = self._session, None
        for answer in session.running:
            answer.cancel()
        if session.keeper is not None:
            session.keeper.cancel()
        if session.transfer is not None:
            session.transfer.close()
        session.loop.run(session.pool.close())
        session.loop.close()
        if session.folder is not None:
            session.folder.close()

    def submit(self, request: Request) -> None:
        session = started(self._session)
        session.tracker.admit(request)
        answer = session.loop.spawn(session.serve(request))
        session.running.add(answer)
        answer.add_done_callback(session.answers.put)

    def step(self) -> list[Completion]:
        session = started(self._session)
        if not session.tracker.in_flight:
            return []
        completions = [answer.result() for answer in session.take_answers()]
        for completion in completions:
            del session.tracker.in_flight[completion.id]
        return completions

    @property
    def num_in_flight(self) -> int:
        return len(self._session.tracker.in_flight) if self._session is not None else 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        session = started(self._session)
        with session.tracker.updating(version):
            tensors = vllm_weights(session.layout, weights)
            session.pool.is_switching = True
            brought = session.bring(tensors, version)
            switched = _switch(session.pool, session.loop, brought)
            if session.folder is not None:
                session.folder.keep_only(switched.folder)

    def _transfer(
        self, pool: ServerPool, loop: LoopThread, layout: WeightLayout, served: Sequence[ServingConfig]
    ) -> WeightTransfer | None:
        """What brings weights to servers other than through a folder, in the first process."""
        if comm.rank() > 0:
            return None
        offers = {server.address: one.transfer for server, one in zip(pool.servers, served, strict=True)}
        backend = choose_backend(offers)
        if backend is None:
            return None
        address = self.transfer_address or local_address(self.addresses)
        return WeightTransfer(pool, loop, layout, served[0].dtype, backend, address)

    @property
    def weight_dtype(self) -> torch.dtype:
        return started(self._session).dtype


@dataclass(eq=False)
class _Session:
    """What exists between `start` and `stop`."""

    run: str
    pool: ServerPool
    loop: LoopThread
    tracker: RequestTracker
    layout: WeightLayout
    folder: WeightFolder | None
    """In the first process alone."""
    end_ids: list[int]
    dtype: torch.dtype
    transfer: WeightTransfer | None
    """In the first process, unless weights go through the folder."""
    keeper: Future[None] | None = None
    running: set[Future[Completion]] = field(default_factory=set)
    answers: queue.SimpleQueue[Future[Completion]] = field(default_factory=queue.SimpleQueue)
    """Of `running`, those that are done."""

    def bring(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> Weights | LostUpdateError | None:
        """Puts new weights where servers take them from, or sends them; None in all processes but the first."""
        tag = f"{self.run}-{version}"
        if self.folder is None:
            for _ in tensors:  # each is gathered from all processes, for the first one to pass it on
                pass
            return None
        if self.transfer is None:
            return Weights(tag, self.folder.write(tensors, version))
        try:
            self.transfer.send(tensors, tag)
        except LostUpdateError as error:
            return error
        return Weights(tag, None, is_broadcast=True)

    async def serve(self, request: Request) -> Completion:
        """Runs in the loop."""
        affinity = repr(request.token_ids[:_AFFINITY_TOKENS]).encode()
        answer = await self.pool.generate(request_body(request, self.end_ids), affinity)
        return completion_of(request, answer, self.tracker.version)

    def take_answers(self) -> list[Future[Completion]]:
        """What has come in, after a short wait if there is nothing yet."""
        answers: list[Future[Completion]] = []
        try:
            answers.append(self.answers.get(timeout=_POLL_S))
            while True:
                answers.append(self.answers.get_nowait())
        except queue.Empty:
            self.running.difference_update(answers)
            return answers


def _first_weights(policy: str, layout: WeightLayout, folder: WeightFolder | None) -> Path | None:
    """Where servers find the weights that a run begins with; None for a policy that only they can find.

    A server reloads a tied LM head only from a file that names it, and the policy's own does not: one that still
    has the head of an earlier run would keep it.
    """
    if not Path(policy).is_dir():
        return None
    if folder is None or not layout.has_ties:
        return Path(policy).resolve()
    model = AutoModelForCausalLM.from_pretrained(policy, dtype="auto")
    return folder.write(vllm_weights(layout, model.named_parameters()), FIRST_VERSION)


def _switch(pool: ServerPool, loop: LoopThread, weights: Weights | LostUpdateError | None) -> Weights:
    """The first of several processes brings the servers to other weights; the others wait, and ask for these then.

    Raises:
        LostUpdateError: in all of them, if it has none.
    """
    if comm.rank() == 0 and isinstance(weights, Weights):
        loop.run(pool.switch(weights))
    weights = comm.broadcast(weights)
    if isinstance(weights, LostUpdateError):
        raise weights
    assert weights is not None
    if comm.rank() > 0:
        loop.run(pool.switch(weights))
    return weights
