"""A byte-level tokenizer and a scripted engine: every token of a conversation is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from appo.core.trajectory import Prompt
from appo.engines import Completion, Engine, Request
from appo.tools import ToolRunner
from tests.rollouts.byte_tokenizer import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


class ScriptedEngine(Engine):
    """Answers each request with the next turn of the script its prompt has; log-probs count up over all sampled tokens.

    Args:
        tokenizer: of the policy.
        turns: texts by the text of the request they answer; of several, each request takes the next, in turns.
        encode: how the policy spells the turns; by default as its tokenizer does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        turns: dict[str, str] | dict[str, list[str]],
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.turns = {sent: cycle([texts] if isinstance(texts, str) else texts) for sent, texts in turns.items()}
        self.encode = encode or partial(tokenizer.encode, add_special_tokens=False)
        self.requests: list[Request] = []
        self.policy_version = 0
        self.end_ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._queue: list[Request] = []
        self._next_log_prob = 0.0

    def start(self, policy: str) -> None: ...

    def stop(self) -> None: ...

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        self._queue.append(request)

    def step(self) -> list[Completion]:
        request = self._queue.pop(0)
        text = next(self.turns[self.tokenizer.decode(request.token_ids)])
        token_ids = self.encode(text)[: request.max_tokens]
        log_probs = []
        for _ in token_ids:
            self._next_log_prob -= 0.125
            log_probs.append(self._next_log_prob)
        stop = next((string for string in request.stop if text.endswith(string)), None)
        reason = "stop" if stop else "eos" if token_ids[-1] in self.end_ids else "length"
        return [Completion(request.id, tuple(token_ids), tuple(log_probs), reason, stop, 0, self.policy_version)]

    @property
    def num_in_flight(self) -> int:
        return len(self._queue)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.policy_version = version

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float32


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    """Of no tools."""
    runner = ToolRunner([])
    runner.start()
    yield runner
    runner.stop()


@pytest.fixture
def prompt(tokenizer: PreTrainedTokenizerFast) -> Prompt:
    return Prompt("q0", "Q?", tuple(tokenizer.encode("Q?", add_special_tokens=False)), ("4",), "toy")
