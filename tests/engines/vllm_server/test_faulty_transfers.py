"""Servers that fail while weights are broadcast to them, over real HTTP; what is broadcast goes nowhere."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from appo.core.extras import MissingPackageError
from appo.distributed import comm
from appo.engines import Request
from appo.engines.base import LostUpdateError
from appo.engines.vllm_server import pool as pools
from appo.engines.vllm_server import transfer_backends, weight_transfer
from appo.engines.vllm_server.answers import ServerError
from appo.engines.vllm_server.engine import VLLMServerEngine
from appo.engines.vllm_server.pool import ServerPool, Weights
from appo.engines.vllm_server.transfer_backends import BACKENDS, Backend, choose_backend, local_address
from appo.engines.vllm_server.transfer_client import TransferClient
from appo.engines.vllm_server.weight_transfer import WeightTransfer
from appo.policy.saving import named_weights
from appo.policy.weight_layout import WeightLayout
from appo.workers.loops import LoopThread
from tests.distributed.processes import as_processes
from tests.engines.tiny_policy import make_model, run
from tests.engines.vllm_server.test_faulty_servers import BODY, GARBAGE, GENERATE, FaultyServer, completion, serving

pytestmark = pytest.mark.vllm

INIT, START, UPDATE, FINISH = (
    "/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update",
)  # fmt: skip
VOCABULARY = 60


@dataclass
class Communicator:
    """Stands where NCCL's would, and can be waited in as in that.

    Attributes:
        is_stuck: whether what is sent waits for somebody, until it is destroyed.
        sent: bytes.
    """

    is_stuck: bool = False
    sent: list[Tensor] = field(default_factory=list)
    destroyed: threading.Event = field(default_factory=threading.Event)

    def broadcast(self, tensor: Tensor, src: int) -> None:
        self.sent.append(tensor)
        if self.is_stuck:
            assert self.destroyed.wait(20)

    def destroy(self) -> None:
        assert not self.destroyed.is_set(), "NCCL does not survive that"
        self.destroyed.set()


@dataclass
class Trainer:
    """The sending side, with servers that are not there but in name."""

    addresses: list[str]
    pool: ServerPool
    loop: LoopThread
    layout: WeightLayout
    transfer: WeightTransfer
    groups: list[Communicator]
    policy: Any

    def send(self, version: int) -> int:
        """Sends all weights, and returns how many tensors were read."""
        read = []

        def weights() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in named_weights(self.policy):
                read.append(name)
                yield name, tensor

        try:
            self.transfer.send(weights(), f"run-{version}")
        finally:
            assert len(read) == len(list(named_weights(self.policy)))
        self.loop.run(self.pool.switch(Weights(f"run-{version}", None, is_broadcast=True)))
        return len(read)

    def ask(self) -> dict[str, Any]:
        return self.loop.run(self.pool.generate(BODY, b""))


@contextmanager
def trainer(
    monkeypatch: pytest.MonkeyPatch,
    *servers: FaultyServer,
    timeout_s: float = 10.0,
    recovery_s: float = 20.0,
    is_stuck: bool = False,
) -> Iterator[Trainer]:
    from tests.engines.vllm_server import gloo_transfer

    groups: list[Communicator] = []

    def open_trainer(init_info: Any) -> Communicator:
        groups.append(Communicator(is_stuck))
        return groups[-1]

    gloo_transfer.use(monkeypatch, open_trainer)
    monkeypatch.setattr(weight_transfer, "_PAUSE_S", 0.01)
    monkeypatch.setattr(weight_transfer, "_LOOK_S", 0.01)
    before = set(threading.enumerate())
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(server)) for server in servers]
        pool = ServerPool(addresses, {}, timeout_s, recovery_s, Weights("run-0", None))
        loop = LoopThread("servers")
        policy = make_model("llama", VOCABULARY)
        layout = WeightLayout.of(policy)
        transfer = WeightTransfer(pool, loop, layout, torch.bfloat16, "gloo", "127.0.0.1")
        yield Trainer(addresses, pool, loop, layout, transfer, groups, policy)
        transfer.close()
        loop.run(pool.close())
        loop.close()
    left = set(threading.enumerate()) - before
    for thread in left:  # what ends does so at once
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


def test_every_server_is_led_through_an_update_and_the_group_stays(monkeypatch):
    servers = [FaultyServer(), FaultyServer()]
    servers[0].world_size = 2
    with trainer(monkeypatch, *servers) as sending:
        sending.send(1)
        sending.send(2)
        (group,) = sending.groups
    update = ["/pause", START, UPDATE, "/reset_prefix_cache", FINISH, "/resume"]
    around = [path for path in servers[0].asked if path != "/weight_info"]
    assert around == ["/get_world_size", "/shutdown_weight_transfer_engine", INIT, *update, *update]
    joined = [server.bodies[server.asked.index(INIT)]["init_info"] for server in servers]
    assert [(info["rank_offset"], info["world_size"]) for info in joined] == [(1, 4), (3, 4)]
    told = servers[1].bodies[servers[1].asked.index(UPDATE)]["update_info"]
    weights = dict(named_weights(sending.policy))
    assert told["names"] == list(weights)
    assert told["shapes"] == [list(tensor.shape) for tensor in weights.values()]
    assert told["dtype_names"] == ["bfloat16" if tensor.ndim > 1 else "float32" for tensor in weights.values()]
    flat = [
        (tensor.bfloat16() if tensor.ndim > 1 else tensor).detach().flatten().view(torch.uint8)
        for tensor in weights.values()
    ]
    assert [sent.equal(torch.cat(flat)) for sent in group.sent] == [True, True]
    assert servers[0].weights == servers[1].weights == "run-2"


@pytest.mark.parametrize("fault", ["hang", "die"])
@pytest.mark.parametrize("path", [INIT, UPDATE])
def test_weights_that_did_not_arrive_are_sent_again_to_a_new_group(monkeypatch, path, fault):
    server = FaultyServer(path, GARBAGE[fault])
    timeout_s = 0.5 if fault == "hang" else 10.0
    with trainer(monkeypatch, server, timeout_s=timeout_s) as sending:
        said = rf"weights run-1 did not reach the servers \({sending.addresses[0]}: "
        with pytest.raises(LostUpdateError, match=said):
            sending.send(1)
        sending.send(1)
        assert sending.ask() == completion("run-1")
        assert len(sending.groups) == 2
    # What it has of the first attempt must not be taken for a part of the second.
    assert server.asked.count(FINISH) == (2 if path == UPDATE else 1)


def test_a_trainer_is_freed_that_sends_to_a_server_which_has_died(monkeypatch):
    with (
        trainer(monkeypatch, FaultyServer(UPDATE, GARBAGE["die"]), is_stuck=True) as sending,
        pytest.raises(LostUpdateError, match="run-1 did not reach the servers"),
    ):
        sending.send(1)


def test_a_call_that_was_given_up_does_not_end_what_is_sent_since():
    ended = []
    loop = LoopThread("servers")
    client = TransferClient(loop, [], lambda: ended.append("group"))
    client.close()
    with pytest.raises(ServerError, match="given up"):
        client.update_weights({})
    loop.close()
    assert not ended


def test_an_update_that_an_earlier_run_did_not_finish_is_finished_first(monkeypatch):
    server = FaultyServer(START, GARBAGE["no JSON"])
    with trainer(monkeypatch, server) as sending:
        sending.send(1)
    assert [path for path in server.asked if path in (START, FINISH)] == [START, FINISH, START, FINISH]


def test_a_server_that_fails_at_the_end_alone_misses_the_weights(monkeypatch, caplog):
    servers = [FaultyServer(), FaultyServer(FINISH, GARBAGE["die"])]
    with trainer(monkeypatch, *servers) as sending:
        sending.send(1)
        for _ in range(2):
            assert sending.ask() == completion("run-1")
        assert servers[1].asked.count(GENERATE) == 0
        sending.send(2)
        assert servers[1].weights == "run-2"
    warning = f"{sending.addresses[1]}: has weights 'default' and not 'run-1': it samples again from the next update on"
    assert caplog.messages.count(warning) == 1


def test_a_server_that_came_back_without_the_weights_is_warned_of_once_though_nothing_is_asked(monkeypatch, caplog):
    monkeypatch.setattr(pools, "_LOOK_S", 0.01)
    servers = [FaultyServer(), FaultyServer()]
    with trainer(monkeypatch, *servers) as sending:
        sending.send(1)
        servers[1].weights = "default"
        keeper = sending.loop.spawn(sending.pool.keep())
        assert servers[1].wait_for_answers("/weight_info", 8)
        keeper.cancel()
    assert [message for message in caplog.messages if "'default' and not 'run-1'" in message] == [
        f"{sending.addresses[1]}: has weights 'default' and not 'run-1': it samples again from the next update on"
    ]


def test_a_run_whose_servers_have_all_lost_the_weights_ends_with_one_line(monkeypatch):
    server = FaultyServer()
    with trainer(monkeypatch, server, recovery_s=0.3) as sending:
        sending.send(1)
        server.weights = "default"
        message = (
            rf"^no vLLM server has had the weights run-1 for 0.3 s \({sending.addresses[0]}: has weights 'default' "
            r".*\): started again, the run goes on from its checkpoint$"
        )
        with pytest.raises(ConnectionError, match=message):
            sending.ask()


def test_weights_that_never_arrive_end_the_run(monkeypatch):
    message = r"^weights run-1 did not reach .* for 0.2 s: started again, the run goes on from its checkpoint$"
    with trainer(monkeypatch, FaultyServer(UPDATE, *100 * [GARBAGE["die"]]), recovery_s=0.2) as sending:

        def send() -> None:
            for _ in range(100):
                with suppress(LostUpdateError):
                    sending.send(1)

        with pytest.raises(ConnectionError, match=message):
            send()


def test_weights_in_another_order_are_refused_and_nothing_waits_for_them(monkeypatch):
    with trainer(monkeypatch, FaultyServer(UPDATE, GARBAGE["hang"])) as sending:
        swapped = reversed(list(named_weights(sending.policy)))
        with pytest.raises(ValueError, match=r"disagrees with iteration at index 0: declared 'model.embed_tokens"):
            sending.transfer.send(swapped, "run-1")


def test_what_a_server_refuses_is_not_sent_again(monkeypatch):
    with (
        trainer(monkeypatch, FaultyServer(UPDATE, lambda *_: 400), is_stuck=True) as sending,
        pytest.raises(ValueError, match=r"^http://127.0.0.1:\d+/update_weights answered 400: $"),
    ):
        sending.transfer.send(named_weights(sending.policy), "run-1")


def test_what_stops_the_gathering_of_weights_is_not_laid_to_the_servers(monkeypatch):
    def weights() -> Iterator[tuple[str, Tensor]]:
        yield next(named_weights(make_model("llama", VOCABULARY)))
        raise RuntimeError("a rank is gone")

    with (
        trainer(monkeypatch, FaultyServer(UPDATE, GARBAGE["hang"])) as sending,
        pytest.raises(RuntimeError, match=r"^a rank is gone$"),
    ):
        sending.transfer.send(weights(), "run-1")


def update_together(rank: int, policy: str, address: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            from tests.engines.vllm_server import gloo_transfer

            gloo_transfer.use(patch, lambda _: Communicator())
            patch.setattr(weight_transfer, "_PAUSE_S", 0.01)
        comm.join(2, 60.0)
        engine = VLLMServerEngine([address])
        engine.start(policy)
        model = AutoModelForCausalLM.from_pretrained(policy)
        with pytest.raises(LostUpdateError, match="did not reach the servers"):
            engine.update_weights(named_weights(model), 1)
        engine.update_weights(named_weights(model), 1)
        engine.submit(Request(0, (5, 6), max_tokens=2))
        (answer,) = run(engine, []).values()
        assert (answer.token_ids, answer.policy_version) == ((8, 9), 1)
        engine.stop()
        comm.leave()


@pytest.mark.distributed
def test_processes_learn_together_that_weights_did_not_arrive(tmp_path, policies):
    server = FaultyServer(UPDATE, GARBAGE["die"])
    with serving(server) as address:
        as_processes(update_together, tmp_path, policies["llama"], address)
    # The first process alone sends, and both ask.
    assert server.asked.count(UPDATE) == 2
    assert server.asked.count(GENERATE) == 2


@pytest.mark.parametrize(
    ("offers", "backend", "said"),
    [
        ({"http://a": None, "http://b": None}, None, "weights go to the servers through a folder"),
        ({"http://a": "nccl", "http://b": "nccl"}, "nccl", "weights go to the servers by vLLM's own transfer (nccl)"),
        (
            {"http://a": "nccl", "http://b": None},
            None,
            "weights go to the servers through a folder: --weight-transfer-config must be the same for all of them, "
            "got http://a: nccl, http://b: none",
        ),
        (
            {"http://a": "ipc"},
            None,
            "weights go to the servers through a folder: their --weight-transfer-config must name nccl, got ipc",
        ),
    ],
)
def test_the_log_says_which_way_weights_go(offers, backend, said, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.INFO):
        assert choose_backend(offers) == backend
    assert caplog.messages == [said]


def test_a_training_without_a_gpu_sends_through_the_folder(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_backend({"http://a": "nccl"}) is None
    assert caplog.messages == [
        "weights go to the servers through a folder: nccl sends from a GPU, and the training has none"
    ]


def test_a_training_without_vllm_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(BACKENDS, "nccl", Backend("no_such_package.engine", "InitInfo", "cpu"))
    message = (
        "rollout.engine=VLLMServerEngine, with servers that were started with --weight-transfer-config, needs the "
        'package no-such-package, which is not installed: pip install "appo[vllm]", or start the servers without it'
    )
    with trainer(monkeypatch) as sending, pytest.raises(MissingPackageError, match=f"^{re.escape(message)}$"):
        WeightTransfer(sending.pool, sending.loop, sending.layout, torch.bfloat16, "nccl", "127.0.0.1")


def test_the_address_is_that_of_the_way_to_a_server_and_must_be_of_this_machine():
    assert local_address(["http://127.0.0.1:8000"]) == "127.0.0.1"
    with pytest.raises(ValueError, match=r"transfer_address must be given: no way to http://no.such.host.invalid:1"):
        local_address(["http://no.such.host.invalid:1"])
    with pytest.raises(ValueError, match=r"transfer_address must be an address of this machine, got '192.0.2.1'"):
        transfer_backends.free_port("192.0.2.1")
