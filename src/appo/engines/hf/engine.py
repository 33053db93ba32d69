"""The embedded engine: transformers alone, on any machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from appo.engines.base import ENGINES, Completion, Engine, Request, started
from appo.engines.hf.batch import GenerationBatch
from appo.engines.hf.prefix_cache import PrefixCache
from appo.engines.hf.served import check_continuation, check_served
from appo.engines.hf.stopping import StopRules, end_token_ids
from appo.engines.request_tracker import RequestTracker
from appo.policy.architecture import exact_attention, longest_sequence
from appo.policy.weight_layout import WeightLayout


@ENGINES.register
@dataclass
class HFEngine(Engine):
    """Samples with the transformers model itself, by continuous batching over a key-value cache.

    Requests join at any step and leave as soon as they end. What a request shares with an earlier one is not computed
    again. The tokens of a request depend on its seed, not on its company. End tokens are those of the policy's
    generation config and of its tokenizer.
    """

    max_batch_size: int = 256
    """Sequences generated at once; further ones wait."""
    max_length: int = 0
    """Tokens of a sequence, prompt and continuation, at most; 0 takes the policy's positions."""
    prefix_cache_tokens: int = 65536
    """Tokens of ended sequences whose keys and values are kept for reuse; 0 keeps none."""
    prefill_tokens: int = 8192
    """Prompt tokens, padding included, that one forward pass computes at most."""
    dtype: str = "auto"
    """Of the weights: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else that of the checkpoint."""
    device: str = "auto"
    """Where to sample, as torch names it; `auto` takes a GPU if there is one."""
    _session: _Session | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_length", "prefix_cache_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")

    def start(self, policy: str) -> None:
        if self._session is not None:
            raise RuntimeError("the engine must be stopped before it is started again")
        device = torch.device(self._device_name())
        dtype = torch.float32 if self.dtype == "auto" and device.type == "cpu" else _DTYPES[self.dtype]
        description = AutoConfig.from_pretrained(policy)
        check_served(description)
        attention = exact_attention(description) or "sdpa"
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            policy, dtype=dtype, attn_implementation=attention
        )
        network: torch.nn.Module = model
        network.requires_grad_(False).eval().to(device)
        check_continuation(model)
        config = model.config.get_text_config(decoder=True)
        length = longest_sequence(config, self.max_length)
        tokenizer = AutoTokenizer.from_pretrained(policy)
        prefixes = PrefixCache(self.prefix_cache_tokens)
        stops = StopRules(tokenizer, config.vocab_size, end_token_ids(model.generation_config, tokenizer))
        batch = GenerationBatch(model, stops, prefixes, self.prefill_tokens)
        tracker = RequestTracker(length, config.vocab_size)
        self._session = _Session(model, WeightLayout.of(model), batch, prefixes, tracker)

    def stop(self) -> None:
        self._session = None

    def submit(self, request: Request) -> None:
        session = started(self._session)
        session.tracker.admit(request)
        session.waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        session = started(self._session)
        free = self.max_batch_size - len(session.batch.rows)
        joining = [session.waiting.popleft() for _ in range(min(free, len(session.waiting)))]
        if joining:
            session.batch.add(joining)
        if not session.batch.rows:
            return []
        completions = session.batch.advance(session.tracker.version)
        for completion in completions:
            del session.tracker.in_flight[completion.id]
        return completions

    @property
    def num_in_flight(self) -> int:
        return len(self._session.tracker.in_flight) if self._session is not None else 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        session = started(self._session)
        with session.tracker.updating(version), torch.no_grad():
            session.prefixes.clear()
            parameters = dict(session.model.named_parameters(remove_duplicate=False))
            for name, tensor in session.layout.checked(weights):
                parameters[name].copy_(tensor)

    @property
    def weight_dtype(self) -> torch.dtype:
        return started(self._session).model.dtype

    def _device_name(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(eq=False)
class _Session:
    """What exists between `start` and `stop`."""

    model: PreTrainedModel
    layout: WeightLayout
    batch: GenerationBatch
    prefixes: PrefixCache
    tracker: RequestTracker
    waiting: deque[Request] = field(default_factory=deque)


_DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
