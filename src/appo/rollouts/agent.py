"""The agent loop: generates, calls tools, and goes on, for many trajectories at once.

A branch is a trajectory with a longer prompt, so initial trajectories and branches run through the same code. Token ids
are carried through: what was sampled is decoded to find calls, never encoded again; only tool output is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from appo.engines import Completion, Engine, Request, SamplingParams
from appo.policy import decode, encode
from appo.seeding import derive_seed
from appo.tools import CallSyntax, ParsedCall, TokenCodec, ToolAnswer, ToolRunner
from appo.trajectory import NOT_SAMPLED, BranchPoint, FinishReason, Prompt, Segment, ToolCall, Trajectory


@dataclass(frozen=True, eq=False)
class Start:
    """Where a trajectory begins.

    Attributes:
        prompt: what is asked.
        seed: of all that is sampled from here on.
        origin: the branch point to start from; None starts behind the prompt.
    """

    prompt: Prompt
    seed: int
    origin: BranchPoint | None = None


@dataclass(frozen=True)
class AgentLimits:
    """What one trajectory may use.

    Attributes:
        max_response_tokens: tokens behind the prompt, tool output included.
        max_tool_calls: over all tools; a further call ends the trajectory.
        max_result_tokens: of one tool's answer; the rest is cut.
    """

    max_response_tokens: int
    max_tool_calls: int
    max_result_tokens: int


@dataclass(eq=False)
class _Episode:
    """A trajectory in the making."""

    start: Start
    token_ids: list[int]
    response_mask: list[bool]
    log_probs: list[float]
    versions: list[int]
    tool_calls: list[ToolCall]
    turn_start: int
    """First token of the text in which the next call is looked for."""
    known_tokens: int = 0
    """Leading tokens that the engine has computed already, if its weights are still those of `known_version`."""
    known_version: int = NOT_SAMPLED
    cached_tokens: int = 0
    reusable_tokens: int = 0
    reused_tokens: int = 0
    num_turns: int = 0
    pending: ParsedCall | None = None
    finish_reason: FinishReason | None = field(default=None)

    @property
    def response_length(self) -> int:
        return len(self.token_ids) - len(self.start.prompt.token_ids)

    def append(self, token_ids: Sequence[int], log_probs: Sequence[float] | None, version: int) -> None:
        """Adds sampled tokens, or tool output where `log_probs` is None."""
        self.token_ids += token_ids
        self.response_mask += [log_probs is not None] * len(token_ids)
        self.log_probs += log_probs if log_probs is not None else [0.0] * len(token_ids)
        self.versions += [version] * len(token_ids)

    def cut(self, length: int) -> None:
        """Forgets all tokens from position `length` on."""
        for values in (self.token_ids, self.response_mask, self.log_probs, self.versions):
            del values[length:]


class AgentLoop:
    """Runs trajectories to their end.

    Generation and tools overlap: a trajectory whose call returns is continued while others still generate.

    Args:
        engine: started.
        tokenizer: of the policy.
        runner: started, with the tools that may be called.
        syntax: how calls and results are written.
        limits: what one trajectory may use.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        runner: ToolRunner,
        syntax: CallSyntax,
        limits: AgentLimits,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.runner = runner
        self.syntax = syntax
        self.limits = limits
        self._tools = tuple(runner.tools)
        self._stop = syntax.stop_strings(self._tools)

    def run(self, starts: Sequence[Start], sampling: SamplingParams) -> list[Trajectory]:
        """Samples one trajectory a start, in the order of `starts`.

        Args:
            starts: at any number; the engine batches what it can.
            sampling: how tokens are drawn.
        """
        episodes = [_open(start) for start in starts]
        for key, episode in enumerate(episodes):
            # A shared prefix may end with a call whose result lies behind the branch point.
            self._continue(key, episode, sampling, call=self._find_call(episode))
        while self.engine.num_in_flight or self.runner.num_in_flight:
            for completion in self.engine.step() if self.engine.num_in_flight else ():
                episode = episodes[completion.id]
                self._take(episode, completion)
                self._continue(completion.id, episode, sampling, call=self._call_of_turn(episode, completion))
            for answer in self.runner.finished(wait_s=0.0 if self.engine.num_in_flight else None):
                episode = episodes[answer.key]
                self._take_answer(episode, answer)
                self._continue(answer.key, episode, sampling, call=None)
        return [self._close(episode) for episode in episodes]

    def _continue(self, key: int, episode: _Episode, sampling: SamplingParams, call: ParsedCall | None) -> None:
        """Calls the tool if there is a call, else generates on, unless the trajectory is over."""
        if episode.finish_reason is not None:
            return
        if call is not None and len(episode.tool_calls) >= self.limits.max_tool_calls:
            episode.finish_reason = "tool_limit"
            return
        remaining = self.limits.max_response_tokens - episode.response_length
        if remaining <= 0:
            episode.finish_reason = "length"
            return
        if call is not None:
            episode.pending = call
            earlier = tuple(past for past in episode.tool_calls if past.tool == call.tool)
            self.runner.submit(key, call.tool, call.argument, earlier)
            return
        seed = derive_seed(episode.start.seed, episode.num_turns)
        self.engine.submit(Request(key, tuple(episode.token_ids), remaining, self._stop, seed, sampling))
        episode.num_turns += 1

    def _take(self, episode: _Episode, completion: Completion) -> None:
        if episode.known_version == completion.policy_version:
            # No engine can spare itself the last token of a request: it predicts the first one sampled.
            reusable = min(episode.known_tokens, len(episode.token_ids) - 1)
            episode.reusable_tokens += reusable
            episode.reused_tokens += min(reusable, completion.cached_tokens)
        episode.append(completion.token_ids, completion.behavior_log_probs, completion.policy_version)
        episode.cached_tokens += completion.cached_tokens
        # The last sampled token is known but was never computed.
        episode.known_tokens = len(episode.token_ids) - 1
        episode.known_version = completion.policy_version
        if completion.finish_reason == "eos":
            episode.finish_reason = "eos"

    def _call_of_turn(self, episode: _Episode, completion: Completion) -> ParsedCall | None:
        """The call that this completion ends, if any; engines see no stop string that began before the completion."""
        is_whole_turn = episode.turn_start == len(episode.token_ids) - len(completion.token_ids)
        if completion.finish_reason != "stop" and is_whole_turn:
            return None
        call = self._find_call(episode)
        if call is not None:
            return call
        if completion.finish_reason == "stop":
            episode.turn_start = len(episode.token_ids)  # a closing tag without an opening one calls nothing
        return None

    def _find_call(self, episode: _Episode) -> ParsedCall | None:
        """The first complete call of the turn; tokens that were sampled behind it are dropped."""
        turn = episode.token_ids[episode.turn_start :]
        if not turn or not self._stop:
            return None
        call = self.syntax.parse(self._decode(turn), self._tools)
        if call is None:
            return None
        length = self._tokens_until(turn, call)
        if length < len(turn):
            episode.cut(episode.turn_start + length)
            episode.finish_reason = None
        return call

    def _tokens_until(self, turn: Sequence[int], call: ParsedCall) -> int:
        """How many tokens of the turn it takes to complete the call."""
        length = len(turn)
        while length > 1 and len(self._decode(turn[: length - 1])) >= call.end:
            length -= 1
        return length

    def _take_answer(self, episode: _Episode, answer: ToolAnswer) -> None:
        call = episode.pending
        assert call is not None
        episode.pending = None
        result = self._cut_result(call.tool, answer.text)
        position = len(episode.token_ids)
        episode.tool_calls.append(
            ToolCall(call.tool, call.argument, result, answer.failure, answer.duration_s, position)
        )
        result_ids = self._encode(self.syntax.format_result(result))
        remaining = self.limits.max_response_tokens - episode.response_length
        episode.append(result_ids[:remaining], None, NOT_SAMPLED)
        episode.turn_start = len(episode.token_ids)

    def _cut_result(self, name: str, text: str) -> str:
        codec, limit = TokenCodec(self._encode, self._decode), self.limits.max_result_tokens
        tool = self.runner.tools.get(name)
        return tool.cut(text, limit, codec) if tool is not None else codec.cut(text, limit)

    def _close(self, episode: _Episode) -> Trajectory:
        assert episode.finish_reason is not None
        prompt = episode.start.prompt
        return Trajectory(
            prompt=prompt,
            token_ids=torch.tensor(episode.token_ids),
            response_mask=torch.tensor(episode.response_mask),
            behavior_log_probs=torch.tensor(episode.log_probs),
            policy_versions=torch.tensor(episode.versions),
            segments=tuple(self._segments(episode, len(prompt.token_ids))),
            tool_calls=tuple(episode.tool_calls),
            finish_reason=episode.finish_reason,
            origin=episode.start.origin,
            cached_tokens=episode.cached_tokens,
            reusable_tokens=episode.reusable_tokens,
            reused_tokens=episode.reused_tokens,
        )

    def _segments(self, episode: _Episode, start: int) -> Iterator[Segment]:
        for is_generated, run in groupby(episode.response_mask[start:]):
            end = start + sum(1 for _ in run)
            text = decode(self.tokenizer, episode.token_ids[start:end], skip_special_tokens=True)
            yield Segment(text, is_generated)
            start = end

    def _decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids)

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)


def check_stop_strings(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
    """Refuses stop strings that no sequence of the policy's tokens can spell.

    Raises:
        ValueError: if there is one.
    """
    for string in stop:
        spelled = decode(tokenizer, encode(tokenizer, string))
        if string not in spelled:
            raise ValueError(
                "rollout.syntax must end calls with strings that the policy can produce, but its tokenizer makes "
                f"{spelled!r} of {string!r}"
            )


def _open(start: Start) -> _Episode:
    """An episode that holds the prompt, or all that a branch shares with its parent."""
    if start.origin is None:
        prompt_ids = list(start.prompt.token_ids)
        size = len(prompt_ids)
        return _Episode(start, prompt_ids, [False] * size, [0.0] * size, [NOT_SAMPLED] * size, [], turn_start=size)
    parent, end = start.origin.trajectory, start.origin.position + 1
    mask = parent.response_mask[:end].tolist()
    turn_start = end
    while turn_start > parent.prompt_length and mask[turn_start - 1]:
        turn_start -= 1
    return _Episode(
        start,
        parent.token_ids[:end].tolist(),
        mask,
        parent.behavior_log_probs[:end].tolist(),
        parent.policy_versions[:end].tolist(),
        [call for call in parent.tool_calls if call.position < end],
        turn_start,
        known_tokens=min(end, len(parent) - 1),
        known_version=int(parent.policy_versions.max()),
    )
