"""Answers of servers that may be about to go, or are no vLLM servers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class ServerError(Exception):
    """A server cannot answer now; it, or another one, may later."""


class MissedWeightsError(ServerError):
    """A server was not there when the wanted weights were broadcast."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Reads an answer, which may be that of a proxy, or of a server that is about to go.

    Args:
        path: that was asked.

    Raises:
        ServerError: if it is not built as that of a vLLM server.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(f"{path} answered otherwise than vLLM does ({type(error).__name__}: {error})") from error


def check_tokens(choice: Mapping[str, Any]) -> None:
    """Looks whether what was sampled can be trained on.

    Args:
        choice: of an answer.

    Raises:
        ValueError: if tokens and their log-probs do not fit, or are none.
    """
    tokens, log_probs = choice["token_ids"], [entry["logprob"] for entry in choice["logprobs"]["content"]]
    if not tokens or len(tokens) != len(log_probs):
        raise ValueError(f"{len(log_probs)} log-probs of {len(tokens)} tokens")
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError("tokens that are no numbers")
    if not all(-math.inf < log_prob <= 1e-3 for log_prob in log_probs):
        raise ValueError("log-probs that are none")
