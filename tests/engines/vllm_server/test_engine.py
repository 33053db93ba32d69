"""Servers that die, come back, or were never there."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from appo.engines import Completion, LostUpdateError, Request, VLLMServerEngine
from appo.engines.vllm_server import weight_transfer
from appo.engines.vllm_server.messages import serving_config
from appo.engines.vllm_server.pool import ServerPool, Weights
from appo.engines.vllm_server.server import Server
from appo.engines.vllm_server.weight_files import WeightFolder
from appo.policy.saving import named_weights
from tests.engines.tiny_policy import forward_log_probs, make_model, random_requests, run
from tests.engines.vllm_server.served_policy import ServedPolicy


def closed_address() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def check(completions: dict[int, Completion], requests: list[Request], model: torch.nn.Module, version: int) -> None:
    """Every request has one answer, sampled by this version of the weights."""
    assert set(completions) == {request.id for request in requests}
    for request in requests:
        completion = completions[request.id]
        assert completion.policy_version == version
        actual = torch.tensor(completion.behavior_log_probs, dtype=torch.float64)
        torch.testing.assert_close(actual, forward_log_probs(model, request, completion), atol=1e-4, rtol=0)


def test_a_server_killed_in_the_middle_loses_nothing(served_llama: ServedPolicy, policies, tokenizer):
    engine = VLLMServerEngine([served_llama.address])
    engine.start(policies["llama"])
    model = make_model("llama", len(tokenizer), seed=2)
    engine.update_weights(named_weights(model), 1)
    requests = random_requests(len(tokenizer), 48)
    for request in requests:
        engine.submit(request)
    completions = {}
    while len(completions) < 3:
        completions |= {completion.id: completion for completion in engine.step()}
    served_llama.kill()
    served_llama.start()
    while engine.num_in_flight:
        completions |= {completion.id: completion for completion in engine.step()}
    check(completions, requests, model, 1)
    engine.stop()


@pytest.fixture(scope="module")
def served_tied(tmp_path_factory, policies) -> Iterator[ServedPolicy]:
    server = ServedPolicy(policies["tied"], tmp_path_factory.mktemp("served") / "server.log", offers_gloo=True)
    server.start()
    yield server
    server.kill()


@pytest.mark.vllm
def test_a_tied_head_follows_its_embedding_from_update_to_update_and_from_run_to_run(served_tied, policies, tokenizer):
    requests = random_requests(len(tokenizer), 8)
    first = AutoModelForCausalLM.from_pretrained(policies["tied"])
    updated = make_model("llama", len(tokenizer), tie=True, seed=5)
    for _ in range(2):
        engine = VLLMServerEngine([served_tied.address])
        engine.start(policies["tied"])
        check(run(engine, requests), requests, first, 0)
        engine.update_weights(named_weights(updated), 1)
        check(run(engine, requests), requests, updated, 1)
        engine.stop()


@pytest.mark.cpu
def test_weights_are_broadcast_to_all_servers_that_are_there(
    served_llama, served_tied, policies, tokenizer, monkeypatch
):
    from tests.engines.vllm_server import gloo_transfer

    class Communicator(gloo_transfer.GlooCommunicator):
        """Of its pieces the fifth finds one server gone: in the middle of the second update."""

        def broadcast(self, tensor: Tensor, src: int) -> None:
            sent.append(tensor)
            if len(sent) == 5:
                served_tied.kill()
            super().broadcast(tensor, src)

    sent: list[Tensor] = []
    gloo_transfer.use(monkeypatch, lambda info: Communicator(info.master_address, info.master_port, 0, info.world_size))
    monkeypatch.setattr(weight_transfer, "_BUFFER_BYTES", 1)
    # A server whose head is its own takes the weights of a tied policy too.
    servers = [served_llama, served_tied]
    engine = VLLMServerEngine([server.address for server in servers])
    requests = random_requests(len(tokenizer), 16)
    models = [make_model("llama", len(tokenizer), tie=True, seed=seed) for seed in range(6, 9)]

    def asked_after_update(version: int) -> list[bool]:
        before = [server.log.read_text().count("POST /inference/v1/generate") for server in servers]
        check(run(engine, requests), requests, models[version - 1], version)
        after = [server.log.read_text().count("POST /inference/v1/generate") for server in servers]
        return [count > earlier for count, earlier in zip(after, before, strict=True)]

    engine.start(policies["tied"])
    reloads = served_llama.log.read_text().count("POST /collective_rpc")
    engine.update_weights(named_weights(models[0]), 1)
    assert asked_after_update(1) == [True, True]
    assert len(sent) == 3
    with pytest.raises(LostUpdateError, match="did not reach the servers"):
        engine.update_weights(named_weights(models[1]), 2)
    served_tied.start()
    engine.update_weights(named_weights(models[1]), 2)
    assert asked_after_update(2) == [True, False]
    wait_for(served_tied)
    assert asked_after_update(2) == [True, False]
    engine.update_weights(named_weights(models[2]), 3)
    assert asked_after_update(3) == [True, True]
    assert served_llama.log.read_text().count("POST /collective_rpc") == reloads
    engine.stop()


def wait_for(server: ServedPolicy) -> None:
    """Until it answers."""

    async def look() -> None:
        async with httpx.AsyncClient(base_url=server.address) as client:
            await serving_config(Server(server.address, client, timeout_s=60), timeout_s=300)

    asyncio.run(look())


def test_requests_of_a_dead_server_go_to_another(served_llama, policies, caplog):
    dead = closed_address()

    async def ask() -> list[dict[str, Any]]:
        weights = Weights("run-0", Path(policies["llama"]))
        pool = ServerPool([dead, served_llama.address], {}, timeout_s=60, recovery_s=120, weights=weights)
        body = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 4, "logprobs": 0}}
        answers = await asyncio.gather(*(pool.generate(body, bytes([number])) for number in range(24)))
        await pool.close()
        return answers

    with caplog.at_level(logging.WARNING):
        answers = asyncio.run(ask())
    assert [span["version"] for answer in answers for span in answer["choices"][0]["weight_versions"]] == 24 * ["run-0"]
    assert dead in caplog.text


def test_a_server_that_is_not_there_is_named_at_the_start(policies):
    address = closed_address()
    with pytest.raises(ConnectionError, match=f"no vLLM server at {address} within 0.1 s"):
        VLLMServerEngine([address], start_timeout_s=0.1).start(policies["llama"])


def test_every_server_is_asked_before_a_pause_and_all_are_named_when_none_answers():
    addresses = [closed_address(), closed_address()]

    async def ask() -> None:
        pool = ServerPool(addresses, {}, timeout_s=5, recovery_s=0.5, weights=Weights("run-0", None))
        try:
            await pool.generate({}, b"")
        finally:
            await pool.close()

    message = rf"no vLLM server has answered for 0.5 s \({addresses[0]}: ConnectError.*; {addresses[1]}: ConnectError"
    with pytest.raises(ConnectionError, match=message):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"addresses": []}, "addresses must name at least one server, got none"),
        ({"addresses": ["localhost:8000"]}, "addresses must begin with http:// or https://, got 'localhost:8000'"),
        ({"request_timeout_s": 0.0}, "request_timeout_s must be positive, got 0.0"),
        ({"max_length": -1}, "max_length must not be negative, got -1"),
    ],
)
def test_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine(**options)


def test_a_key_that_is_not_set_is_an_error(policies):
    message = "rollout.engine.headers must name environment variables that are set, got {NO_SUCH_KEY}, which is not"
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine(headers={"Authorization": "Bearer {NO_SUCH_KEY}"}).start(policies["llama"])


def test_a_version_of_the_weights_appears_whole_and_the_ones_before_go(tmp_path: Path, tokenizer):
    model = make_model("llama", len(tokenizer), tie=True)
    folder = WeightFolder(str(tmp_path))
    first = folder.write(named_weights(model), 1)
    second = folder.write(named_weights(model), 2)
    folder.keep_only(second)
    assert not first.exists()
    written = {name: tensor for path in second.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert set(written) == {name for name, _ in named_weights(model)}
    for name, tensor in named_weights(model):
        assert torch.equal(written[name], tensor)
    folder.close()
    assert second.exists()
