"""The embedded engine: transformers alone, on any machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from appo.engines.base import ENGINES, Completion, Engine, Request
from appo.engines.generation import GenerationBatch
from appo.engines.prefix_cache import PrefixCache
from appo.engines.stopping import StopRules

FIRST_VERSION = 0
"""Policy version of the weights that `start` loads."""


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
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(policy, dtype=dtype, attn_implementation="sdpa")
        network: torch.nn.Module = model
        network.requires_grad_(False).eval().to(device)
        config = model.config.get_text_config(decoder=True)
        if self.max_length > config.max_position_embeddings:
            raise ValueError(
                f"max_length must not exceed the policy's {config.max_position_embeddings} positions, "
                f"got {self.max_length}"
            )
        tokenizer = AutoTokenizer.from_pretrained(policy)
        prefixes = PrefixCache(self.prefix_cache_tokens)
        stops = StopRules(tokenizer, config.vocab_size, end_token_ids(model, tokenizer))
        batch = GenerationBatch(model, stops, prefixes, self.prefill_tokens)
        self._session = _Session(
            model, batch, prefixes, self.max_length or config.max_position_embeddings, config.vocab_size
        )

    def stop(self) -> None:
        self._session = None

    def submit(self, request: Request) -> None:
        session = self._started()
        if not session.has_weights:
            raise RuntimeError("the last update_weights failed: the policy must be updated before it is sampled")
        _check(request, session)
        session.in_flight.add(request.id)
        session.waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        session = self._started()
        free = self.max_batch_size - len(session.batch.rows)
        joining = [session.waiting.popleft() for _ in range(min(free, len(session.waiting)))]
        if joining:
            session.batch.add(joining)
        if not session.batch.rows:
            return []
        finished = session.batch.advance()
        session.in_flight.difference_update(end.request.id for end in finished)
        return [
            Completion(
                id=end.request.id,
                token_ids=end.token_ids,
                behavior_log_probs=end.log_probs,
                finish_reason=end.finish_reason,
                stop_string=end.stop_string,
                cached_tokens=end.cached_tokens,
                policy_version=session.version,
            )
            for end in finished
        ]

    @property
    def num_in_flight(self) -> int:
        return len(self._session.in_flight) if self._session is not None else 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        session = self._started()
        if session.in_flight:
            raise RuntimeError(f"weights must not be updated with requests in flight, got {len(session.in_flight)}")
        if version <= session.version:
            raise ValueError(f"version must be higher than the present {session.version}, got {version}")
        # A failure half way leaves weights of two policies behind.
        session.has_weights = False
        session.prefixes.clear()
        copy_weights(session.model, weights)
        session.has_weights = True
        session.version = version

    def _device_name(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _started(self) -> _Session:
        if self._session is None:
            raise RuntimeError("the engine must be started first")
        return self._session


@dataclass(eq=False)
class _Session:
    """What exists between `start` and `stop`."""

    model: PreTrainedModel
    batch: GenerationBatch
    prefixes: PrefixCache
    max_length: int
    vocab_size: int
    version: int = FIRST_VERSION
    has_weights: bool = True
    waiting: deque[Request] = field(default_factory=deque)
    in_flight: set[int] = field(default_factory=set)


_DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _check(request: Request, session: _Session) -> None:
    if request.id in session.in_flight:
        raise ValueError(f"id must be unique among the requests in flight, got {request.id}")
    if not request.token_ids:
        raise ValueError(f"token_ids of request {request.id} must not be empty")
    if request.max_tokens < 1:
        raise ValueError(f"max_tokens of request {request.id} must be at least 1, got {request.max_tokens}")
    if len(request.token_ids) + request.max_tokens > session.max_length:
        raise ValueError(
            f"token_ids and max_tokens of request {request.id} must fit into {session.max_length} positions, "
            f"got {len(request.token_ids)} + {request.max_tokens}"
        )
    if min(request.token_ids) < 0 or max(request.token_ids) >= session.vocab_size:
        raise ValueError(
            f"token_ids of request {request.id} must lie in 0 .. {session.vocab_size - 1}, "
            f"got {min(request.token_ids)} .. {max(request.token_ids)}"
        )
    if "" in request.stop:
        raise ValueError(f"stop of request {request.id} must not hold an empty string, got {request.stop}")


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a continuation: those of the generation config, and the tokenizer's own."""
    of_model = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return frozenset(token for token in ids if token is not None)


@torch.no_grad()
def copy_weights(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copies tensors over the parameters of a model, in place.

    Args:
        model: taken as its own parameter names say; of tied parameters one name is enough.
        weights: parameter name and tensor, read once.

    Raises:
        ValueError: if a name or shape does not fit, or a parameter is missing.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    copied = set()
    for name, tensor in weights:
        if name not in parameters:
            raise ValueError(f"weights must be named like parameters of {type(model).__name__}, got {name!r}")
        if tensor.shape != parameters[name].shape:
            raise ValueError(f"{name} must have shape {list(parameters[name].shape)}, got {list(tensor.shape)}")
        parameters[name].copy_(tensor)
        copied.add(parameters[name])
    missing = [name for name, parameter in parameters.items() if parameter not in copied]
    if missing:
        raise ValueError(f"weights must name every parameter of {type(model).__name__}, missing {', '.join(missing)}")
