"""The rows that are being generated: admitted when they come, evicted when they end, advanced by a token together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from appo.engines.base import Completion, Request
from appo.engines.hf.batch_state import BatchState
from appo.engines.hf.kv_cache import KVCache, cache_shape
from appo.engines.hf.prefix_cache import PrefixCache
from appo.engines.hf.sampling import SamplingRules, sample
from appo.engines.hf.served import AttentionMasks
from appo.engines.hf.stopping import StopRules
from appo.policy.attention import without_cudnn

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class _Row:
    """A request while it is generated; `admitted_at` is the number of the step before its first."""

    request: Request
    cached_tokens: int
    admitted_at: int


class GenerationBatch:
    """Continuous batching: what joins is prefilled up to its last token, then takes part in every step.

    Rows in use have the first slots, in the order of `rows`. Feeding the last prompt token is a step like any other, so
    logits are only ever computed for tokens that are sampled.

    Args:
        model: the policy.
        stops: where continuations end.
        prefixes: what need not be computed again.
        max_prefill_tokens: of one prefill forward pass, padding included; a longer request gets one of its own.
    """

    def __init__(
        self, model: PreTrainedModel, stops: StopRules, prefixes: PrefixCache, max_prefill_tokens: int
    ) -> None:
        self.rows: list[_Row] = []
        self._model = model
        self._stops = stops
        self._prefixes = prefixes
        self._max_prefill_tokens = max_prefill_tokens
        self._cache = KVCache(cache_shape(model), model.dtype, model.device)
        self._masks = AttentionMasks.of(model.config)
        self._state = BatchState(model.device)
        self._rules = SamplingRules()
        self._step = 0
        self._longest = 0

    def add(self, requests: Sequence[Request]) -> None:
        """Admits requests; of those with equal tokens the first is computed and the others share its prefix."""
        first = {request.token_ids: request for request in reversed(requests)}
        self._admit([request for request in requests if first[request.token_ids] is request])
        self._admit([request for request in requests if first[request.token_ids] is not request])
        self._refresh()

    def advance(self, policy_version: int) -> list[Completion]:
        """Samples one token for every row and evicts those that end with it.

        Args:
            policy_version: of the weights.
        """
        num_rows = len(self.rows)
        lengths = self._state.lengths[:num_rows]
        positions = lengths[:, None] - 1
        logits = self._forward(slice(0, num_rows), positions, self._longest, with_head=True)
        uniforms = self._state.uniforms[:num_rows].gather(1, lengths[:, None])
        token_ids, log_probs = sample(logits[:, -1].float(), uniforms, self._rules)
        ended = self._state.append(num_rows, token_ids, log_probs)
        ended |= self._stops.may_end(self._state.stop_numbers[:num_rows], token_ids[:, 0])
        self._step += 1
        self._longest += 1
        return self._evict(ended.nonzero()[:, 0].tolist(), policy_version)

    def _admit(self, requests: list[Request]) -> None:
        if not requests:
            return
        # The last token is fed by the first step, so at most the ones before it can come from the prefix cache.
        known = [(request, self._prefixes.find(request.token_ids[:-1])) for request in requests]
        known.sort(key=lambda pair: _num_new(*pair), reverse=True)
        start = len(self.rows)
        stop = start + len(known)
        self._state.reserve(stop, max(len(r.token_ids) + r.max_tokens for r in requests))
        self._cache.reserve(stop, max(len(r.token_ids) for r in requests))
        for row, (request, states) in enumerate(known, start):
            if states is not None:
                self._cache.write(row, states)
            self._state.fill(row, request, self._stops.number_of(request.stop))
            self.rows.append(_Row(request, 0 if states is None else states.shape[3], self._step))
        for rows, width in self._prefill_groups(start, [_num_new(*pair) for pair in known]):
            self._prefill(rows, width)
        for row, (request, states) in enumerate(known, start):
            if _num_new(request, states):
                self._remember(row, request.token_ids[:-1])

    def _prefill_groups(self, start: int, num_new: list[int]) -> list[tuple[slice, int]]:
        """Cuts rows, most new tokens first, into those prefilled together: of similar width, within the budget."""
        groups, begin = [], 0
        while begin < len(num_new) and num_new[begin]:
            width = num_new[begin]
            end = begin + 1
            while end < len(num_new) and width * (end - begin + 1) <= self._max_prefill_tokens:
                if 2 * num_new[end] < width:
                    break
                end += 1
            groups.append((slice(start + begin, start + end), width))
            begin = end
        return groups

    def _prefill(self, rows: slice, width: int) -> None:
        cached = torch.tensor([[row.cached_tokens] for row in self.rows[rows]], device=self._state.lengths.device)
        last = self._state.lengths[rows, None] - 1
        # Padding falls on the last token, which the first step computes and overwrites.
        positions = torch.minimum(cached + torch.arange(width, device=cached.device), last)
        longest = max(len(row.request.token_ids) for row in self.rows[rows])
        self._forward(rows, positions, longest, with_head=False)

    @without_cudnn()
    def _forward(self, rows: slice, positions: Tensor, length: int, with_head: bool) -> Tensor:
        """Feeds the tokens at `positions` ``[B, T]`` of some slots; with the head, returns ``[B, T, V]`` logits."""
        self._cache.reserve(rows.stop, length)
        self._cache.focus(rows, positions, length)
        model = self._model if with_head else self._model.base_model
        output = model(
            input_ids=self._state.token_ids[rows].gather(1, positions),
            attention_mask=self._masks(positions, length, self._model.dtype),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        result: Tensor = output.logits if with_head else output.last_hidden_state
        return result

    def _evict(self, candidates: list[int], policy_version: int) -> list[Completion]:
        """Checks the rows that may have ended; the slots of those that did are filled from the end of the batch."""
        finished, freed = [], []
        for row in candidates:
            token_ids = self._state.sampled_tokens(row, self.rows[row].request)
            reason, stop_string = self._ending(self.rows[row].request, token_ids)
            if reason is None:
                continue
            finished.append(self._completion(row, token_ids, reason, stop_string, policy_version))
            freed.append(row)
        if freed:
            self._close_gaps(set(freed))
            self._refresh()
        return finished

    def _ending(self, request: Request, token_ids: list[int]) -> tuple[FinishReason | None, str | None]:
        if token_ids[-1] in self._stops.end_ids:
            return "eos", None
        stop_string = self._stops.find_stop(token_ids, request.stop)
        if stop_string is not None:
            return "stop", stop_string
        return ("length" if len(token_ids) == request.max_tokens else None), None

    def _completion(
        self, row: int, token_ids: list[int], reason: FinishReason, stop_string: str | None, policy_version: int
    ) -> Completion:
        request = self.rows[row].request
        # The last token was sampled but never fed: there are no keys and values of it.
        self._remember(row, (*request.token_ids, *token_ids[:-1]))
        return Completion(
            id=request.id,
            token_ids=tuple(token_ids),
            behavior_log_probs=tuple(self._state.sampled_log_probs(row, request, len(token_ids))),
            finish_reason=reason,
            stop_string=stop_string,
            cached_tokens=self.rows[row].cached_tokens,
            policy_version=policy_version,
        )

    def _remember(self, row: int, token_ids: tuple[int, ...]) -> None:
        if self._prefixes.accepts(len(token_ids)):
            self._prefixes.insert(token_ids, self._cache.read(row, len(token_ids)))

    def _close_gaps(self, freed: set[int]) -> None:
        num_left = len(self.rows) - len(freed)
        targets = sorted(row for row in freed if row < num_left)
        sources = [row for row in range(num_left, len(self.rows)) if row not in freed]
        self._cache.move(sources, targets, self._longest)
        self._state.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[num_left:]

    def _refresh(self) -> None:
        """Computes anew what only changes when rows are admitted or evicted."""
        sampling = [row.request.sampling for row in self.rows]
        self._rules = SamplingRules.stack(sampling, self._model.config.vocab_size, self._model.device)
        self._longest = max((len(row.request.token_ids) + self._step - row.admitted_at for row in self.rows), default=0)


def _num_new(request: Request, states: Tensor | None) -> int:
    """Tokens to prefill: all but those known and the last."""
    return len(request.token_ids) - 1 - (0 if states is None else states.shape[3])
