"""The agent loop: generates, calls tools, and goes on, for many trajectories at once.

A branch is a trajectory with a longer prompt, so initial trajectories and branches run through the same code. Token ids
are carried through: what was sampled is decoded to find calls, never encoded again; only tool output is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from appo.core.seeding import derive_seed
from appo.core.trajectory import NOT_SAMPLED, Segment, ToolCall, Trajectory
from appo.engines import Completion, Engine, Request, SamplingParams
from appo.policy.text import decode, encode
from appo.rollouts.episode import AgentLimits, Episode, PendingCall, Start, open_episode
from appo.tools import CallSyntax, ParsedCall, RenderChat, TokenCodec, ToolAnswer, ToolRunner


@dataclass(frozen=True)
class SamplingCosts:
    """What sampling took.

    Attributes:
        generating_s: seconds in which the engine had something to generate.
        tools_s: seconds in which it had not, since all trajectories waited for tools.
        num_tokens: that were sampled, those that were dropped behind a call included.
    """

    generating_s: float = 0.0
    tools_s: float = 0.0
    num_tokens: int = 0

    @staticmethod
    def of_all(parts: Sequence[SamplingCosts]) -> SamplingCosts:
        """Of several processes that sample at the same time: all tokens, in the seconds of the slowest."""
        return SamplingCosts(
            max(part.generating_s for part in parts),
            max(part.tools_s for part in parts),
            sum(part.num_tokens for part in parts),
        )


@dataclass(eq=False)
class Flight:
    """Trajectories that were begun together.

    Attributes:
        episodes: in the order of their starts.
        sampling: how their tokens are drawn.
        num_open: episodes that have not come to their end.
    """

    episodes: Sequence[Episode]
    sampling: SamplingParams
    num_open: int


class AgentLoop:
    """Runs trajectories to their end.

    Generation and tools overlap: a trajectory whose call returns is continued while others still generate. What is
    begun while others are on their way joins them. One thread at a time calls it.

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
        self._render = chat_renderer(tokenizer, runner)
        self._special_tokens = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)) or r"(?!)")
        self._keys = count()
        self._numbers = count()
        self._open: dict[int, tuple[Flight, Episode]] = {}
        """Episodes that have not come to their end, by number."""
        self._waiting: dict[int, tuple[int, PendingCall]] = {}
        """Calls in flight by key, with the number of their episode."""
        self.costs = SamplingCosts()
        """Of everything since the last `take_costs`."""

    def run(self, starts: Sequence[Start], sampling: SamplingParams) -> list[Trajectory]:
        """Samples one trajectory a start, in the order of `starts`.

        Args:
            starts: at any number; the engine batches what it can.
            sampling: how tokens are drawn.
        """
        flight = self.begin(starts, sampling)
        while flight.num_open:
            self.advance()
        self.engine.drain()
        return self.trajectories(flight)

    def begin(self, starts: Sequence[Start], sampling: SamplingParams) -> Flight:
        """Submits the first requests of some trajectories; `advance` then brings them on, along with all others.

        Args:
            starts: at any number.
            sampling: how tokens are drawn.
        """
        episodes = [open_episode(start) for start in starts]
        flight = Flight(episodes, sampling, len(episodes))
        for episode in episodes:
            number = next(self._numbers)
            self._open[number] = (flight, episode)
            # A shared prefix may end with a call whose result lies behind the branch point.
            self._continue(number, episode, sampling, self._calls_of_prefix(episode))
            self._note_end(number)
        return flight

    def advance(self, wait_s: float | None = None) -> None:
        """Takes up what engine and tools have finished, after a step of the engine or, without one, of a tool.

        Args:
            wait_s: seconds to wait for a tool while nothing is generated; None waits as long as it takes.
        """
        started, is_generating, num_tokens = perf_counter(), self.engine.num_in_flight > 0, 0
        for completion in self.engine.step() if is_generating else ():
            flight, episode = self._open[completion.id]
            num_tokens += len(completion.token_ids)
            self._take(episode, completion)
            self._continue(completion.id, episode, flight.sampling, self._calls_of_turn(episode, completion))
            self._note_end(completion.id)
        for answer in self.runner.finished(wait_s=0.0 if is_generating else wait_s):
            number, pending = self._waiting.pop(answer.key)
            flight, episode = self._open[number]
            pending.answer = answer
            self._continue_with_results(number, episode, flight.sampling)
            self._note_end(number)
        elapsed_s, costs = perf_counter() - started, self.costs
        self.costs = SamplingCosts(
            costs.generating_s + is_generating * elapsed_s,
            costs.tools_s + (not is_generating) * elapsed_s,
            costs.num_tokens + num_tokens,
        )

    def trajectories(self, flight: Flight) -> list[Trajectory]:
        """What became of the starts of a flight in which nothing is open, in their order."""
        return [self._close(episode) for episode in flight.episodes]

    def take_costs(self) -> SamplingCosts:
        """What sampling took since the last call."""
        costs, self.costs = self.costs, SamplingCosts()
        return costs

    def rest(self) -> None:
        """Lets the engine give back memory: nothing will be sampled for a while."""
        self.engine.sleep()

    def _note_end(self, number: int) -> None:
        flight, episode = self._open[number]
        if episode.finish_reason is not None:
            del self._open[number]
            flight.num_open -= 1

    def _continue(
        self, number: int, episode: Episode, sampling: SamplingParams, calls: Sequence[ParsedCall] = ()
    ) -> None:
        """Calls the tools if there are calls, else generates on, unless the trajectory is over."""
        if episode.finish_reason is not None or not self._admit(episode, calls):
            return
        remaining = self.limits.max_response_tokens - episode.response_length
        if remaining <= 0:
            episode.finish_reason = "length"
        elif calls:
            self._submit_calls(number, episode)
            self._continue_with_results(number, episode, sampling)
        else:
            seed = derive_seed(episode.start.seed, episode.num_turns)
            self.engine.submit(Request(number, tuple(episode.token_ids), remaining, self._stop, seed, sampling))
            episode.num_turns += 1

    def _admit(self, episode: Episode, calls: Sequence[ParsedCall]) -> bool:
        """Makes the calls of a turn pending, answered where no tool is asked; False if one ends the trajectory."""
        rules = self.limits.rules
        for call in calls:
            refusal = self._refusal(episode, call)
            no_more = rules.at_limit == "end" or episode.num_refusals >= rules.max_refusals
            if not episode.start.may_call_tools or (refusal is not None and no_more):
                episode.finish_reason = "tool_limit"
                return False
            key = next(self._keys)
            answer = None
            if refusal is not None:
                answer = ToolAnswer(key, refusal, "refused", 0.0)
            elif call.error is not None:
                answer = ToolAnswer(key, call.error, "malformed", 0.0)
            elif rules.repeated_calls == "reuse":
                earlier = episode.earlier_result(call.tool, call.argument)
                answer = None if earlier is None else ToolAnswer(key, earlier, None, 0.0)
            episode.pending.append(PendingCall(key, call, answer))
        return True

    def _refusal(self, episode: Episode, call: ParsedCall) -> str | None:
        """What to say of a call that is one too many; None if it is not."""
        if episode.num_calls() >= (limit := self.limits.max_tool_calls):
            return f"Error: the limit of {limit} tool calls is reached."
        most = self.limits.rules.max_calls_per_tool.get(call.tool)
        if most is not None and episode.num_calls(call.tool) >= most:
            return f"Error: the limit of {most} calls of {call.tool} is reached."
        return None

    def _submit_calls(self, number: int, episode: Episode) -> None:
        for pending in episode.pending:
            if pending.answer is None:
                call = pending.call
                self._waiting[pending.key] = (number, pending)
                argument = call.argument if call.arguments is None else call.arguments
                earlier = tuple(past for past in episode.tool_calls if past.tool == call.tool)
                self.runner.submit(pending.key, call.tool, argument, earlier)

    def _continue_with_results(self, number: int, episode: Episode, sampling: SamplingParams) -> None:
        """Goes on once all calls of the turn are answered."""
        answers = [pending.answer for pending in episode.pending if pending.answer is not None]
        if len(answers) == len(episode.pending):
            self._take_answers(episode, answers)
            self._continue(number, episode, sampling)

    def _take(self, episode: Episode, completion: Completion) -> None:
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

    def _calls_of_prefix(self, episode: Episode) -> Sequence[ParsedCall]:
        """The calls at the end of what a branch shares with its parent, if their results lie behind it."""
        origin = episode.start.origin
        if origin is None:
            return ()
        behind = origin.trajectory.response_mask[origin.position + 1 :]
        is_over = len(behind) > 0 and not behind[0]
        return self._find_calls(episode) if self._stop or is_over else ()

    def _calls_of_turn(self, episode: Episode, completion: Completion) -> Sequence[ParsedCall]:
        """The calls that this completion ends, if any; engines see no stop string that began before the completion."""
        if not self._stop:
            return self._find_calls(episode) if completion.finish_reason == "eos" else ()
        is_whole_turn = episode.turn_start == len(episode.token_ids) - len(completion.token_ids)
        if completion.finish_reason != "stop" and is_whole_turn:
            return ()
        calls = self._find_calls(episode)
        if not calls and completion.finish_reason == "stop":
            episode.turn_start = len(episode.token_ids)  # a closing tag without an opening one calls nothing
        return calls

    def _find_calls(self, episode: Episode) -> Sequence[ParsedCall]:
        """The complete calls of the turn; tokens that were sampled behind them are dropped."""
        turn = episode.token_ids[episode.turn_start :]
        if not turn or not self._tools:
            return ()
        calls = self.syntax.parse(self._decode(turn), self._tools)
        if calls:
            episode.cut(episode.turn_start + self._tokens_until(turn, calls[-1]))
            episode.finish_reason = None
        return calls

    def _tokens_until(self, turn: Sequence[int], call: ParsedCall) -> int:
        """How many tokens of the turn it takes to complete the call."""
        length = len(turn)
        while length > 1 and len(self._decode(turn[: length - 1])) >= call.end:
            length -= 1
        return length

    def _take_answers(self, episode: Episode, answers: Sequence[ToolAnswer]) -> None:
        position = len(episode.token_ids)
        results = [
            self._cut_result(pending.call.tool, self._defuse(answer.text))
            for pending, answer in zip(episode.pending, answers, strict=True)
        ]
        for pending, answer, result in zip(episode.pending, answers, results, strict=True):
            call = pending.call
            episode.tool_calls.append(
                ToolCall(call.tool, call.argument, result, answer.failure, answer.duration_s, position)
            )
        episode.pending.clear()
        turn = self._decode(episode.token_ids[episode.turn_start :])
        result_ids = self._encode(self.syntax.format_results(results, turn, self._render))
        remaining = self.limits.max_response_tokens - episode.response_length
        episode.append(result_ids[:remaining], None, NOT_SAMPLED)
        episode.turn_start = len(episode.token_ids)

    def _defuse(self, text: str) -> str:
        """Spells out what would be encoded to special tokens: a result must not end the turn, or open another."""
        return self._special_tokens.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)

    def _cut_result(self, name: str, text: str) -> str:
        codec, limit = TokenCodec(self._encode, self._decode), self.limits.max_result_tokens
        tool = self.runner.tools.get(name)
        return tool.cut(text, limit, codec) if tool is not None else codec.cut(text, limit)

    def _close(self, episode: Episode) -> Trajectory:
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

    def _segments(self, episode: Episode, start: int) -> Iterator[Segment]:
        for is_generated, run in groupby(episode.response_mask[start:]):
            end = start + sum(1 for _ in run)
            text = decode(self.tokenizer, episode.token_ids[start:end], skip_special_tokens=True)
            yield Segment(text, is_generated)
            start = end

    def _decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids)

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)


def chat_renderer(tokenizer: PreTrainedTokenizerBase, runner: ToolRunner) -> RenderChat:
    """The chat template of a tokenizer, with the tools of a started runner."""
    tools: list[Any] | None = runner.schemas() or None

    def render(messages: Sequence[dict[str, str]], **options: Any) -> str:
        text = tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **options)
        assert isinstance(text, str)
        return text

    return render
