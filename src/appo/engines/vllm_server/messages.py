"""What is said to a vLLM server, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from appo.engines.base import Completion, Request
from appo.engines.vllm_server.answers import ServerError, reading
from appo.engines.vllm_server.server import Server

_CONFIG = "/server_info?config_format=json"


@dataclass(frozen=True)
class ServingConfig:
    """What a server was started with.

    Attributes:
        max_length: tokens of a sequence, at most.
        dtype: of its weights.
        logprobs_mode: which log-probs it tells.
        transfer: name of its backend for vLLM's own weight transfer; None if it has none.
    """

    max_length: int
    dtype: torch.dtype
    logprobs_mode: str
    transfer: str | None


async def serving_config(server: Server, timeout_s: float) -> ServingConfig:
    """What a server was started with, as soon as it answers.

    Raises:
        ConnectionError: if it does not answer in time.
        ValueError: if it cannot serve a training run.
    """
    asking = AsyncRetrying(
        retry=retry_if_exception_type(ServerError),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(timeout_s),
        reraise=True,
    )

    async def ask() -> ServingConfig:
        info = await server.call("GET", _CONFIG)
        with reading(_CONFIG):
            told = info["vllm_config"]
            model, transfer = told["model_config"], told.get("weight_transfer_config")
            return ServingConfig(
                int(model["max_model_len"]),
                getattr(torch, str(model["dtype"]).removeprefix("torch.")),
                str(model["logprobs_mode"]),
                None if transfer is None else str(transfer["backend"]),
            )

    try:
        config: ServingConfig = await asking(ask)
    except ServerError as error:
        raise ConnectionError(f"no vLLM server at {server.address} within {timeout_s:g} s: {error}") from error
    if config.logprobs_mode != "processed_logprobs":
        raise ValueError(
            f"{server.address} must be started with --logprobs-mode processed_logprobs: log-probs must be those of the "
            f"distribution that tokens are drawn from, got {config.logprobs_mode}"
        )
    return config


def request_body(request: Request, end_ids: list[int]) -> dict[str, Any]:
    """What a server is asked for a request."""
    return {
        "token_ids": list(request.token_ids),
        "sampling_params": {
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k,
            "seed": request.seed % 2**63,
            "max_tokens": request.max_tokens,
            "stop": list(request.stop),
            "stop_token_ids": end_ids,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "logprobs": 0,
        },
    }


def completion_of(request: Request, answer: dict[str, Any], version: int) -> Completion:
    """What it has answered."""
    choice = answer["choices"][0]
    stop_string = choice["stop_reason"] if isinstance(choice["stop_reason"], str) else None
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    return Completion(
        id=request.id,
        token_ids=tuple(choice["token_ids"]),
        behavior_log_probs=tuple(entry["logprob"] for entry in choice["logprobs"]["content"]),
        finish_reason="length" if choice["finish_reason"] == "length" else "stop" if stop_string else "eos",
        stop_string=stop_string,
        cached_tokens=details.get("cached_tokens") or 0,
        policy_version=version,
    )
