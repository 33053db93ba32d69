"""The agent loop: generates, calls tools, and goes on, for many trajectories at once.

A branch is a trajectory with a longer prompt, so roots and branches run through the same code. Token ids
are carried through: what was sampled is decoded to find calls, never encoded again; only tool output is encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import torch
from transformers import PreTrainedTokenizerBase

from appo.core.seeding import derive_seed
from appo.core.trajectory import Trajectory
from appo.engines import Completion, Engine, Request, SamplingParams
from appo.rollouts.answers import AnswersAtOnce, AnswersInStep
from appo.rollouts.episode import Episode, Limits, RolloutRequest, open_episode
from appo.rollouts.sampling import SamplingCosts
from appo.rollouts.timing import PhaseTimer
from appo.rollouts.tool_turns import ToolTurns
from appo.tools import CallSyntax, ParsedCall, ToolRunner


@dataclass(eq=False)
class RequestBatch:
    """Trajectories that were begun together.

    Attributes:
        episodes: in the order of their requests.
        sampling: how their tokens are drawn.
        num_open: episodes that have not come to their end.
    """

    episodes: Sequence[Episode]
    sampling: SamplingParams
    num_open: int


class AgentLoop:
    """Runs trajectories to their end.

    Generation and tools overlap: a trajectory whose call returns is continued while others still generate. What is
    begun while others are in flight joins them. One thread at a time calls it.

    Args:
        engine: started.
        tokenizer: of the policy.
        runner: started, with the tools that may be called.
        syntax: how calls and results are written.
        limits: what one trajectory may use.
        timer: where the seconds of sampling are added up; None keeps them to itself.
        deterministic: takes up the answers of tools at fixed steps, so that what is generated together does not depend
            on how fast they are.
    """

    is_asynchronous = False

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        runner: ToolRunner,
        syntax: CallSyntax,
        limits: Limits,
        timer: PhaseTimer | None = None,
        deterministic: bool = False,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.runner = runner
        self.limits = limits
        self.timer = timer or PhaseTimer()
        self.costs = SamplingCosts()
        """Of everything since the last `pop_costs`."""
        self._turns = ToolTurns(tokenizer, runner, syntax, limits)
        self._answers = AnswersInStep(runner) if deterministic else AnswersAtOnce(runner)
        self._numbers = count()
        self._open: dict[int, tuple[RequestBatch, Episode]] = {}
        """Episodes that have not come to their end, by number."""
        self._waiting: dict[int, int] = {}
        """The number of the episode of each call in flight, by the number of the call."""

    def run(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Trajectory]:
        """As `Agent.run`."""
        return self.finish(self.begin(requests, sampling))

    def begin(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> RequestBatch:
        """As `Agent.begin`; `advance` then brings them on, along with all others."""
        episodes = [open_episode(request) for request in requests]
        batch = RequestBatch(episodes, sampling, len(episodes))
        for episode in episodes:
            number = next(self._numbers)
            self._open[number] = (batch, episode)
            # A shared prefix may end with a call whose result lies behind the branch point.
            self._continue(number, episode, sampling, self._turns.of_prefix(episode))
            self._close_if_over(number)
        return batch

    def finish(self, begun: RequestBatch) -> list[Trajectory]:
        """As `Agent.finish`; all others in flight come to their end, too, which keeps the engine's batches large."""
        with waiting(self.timer, phase_of(episode.request for episode in begun.episodes), self):
            while self._open:
                self.advance()
            self.engine.drain()
            return self.trajectories(begun)

    @property
    def is_idle(self) -> bool:
        return not self._open

    def step(self, phase: str, wait_s: float | None = None) -> None:
        """As `Agent.step`."""
        with waiting(self.timer, phase, self):
            self.advance(wait_s)

    def has_ended(self, begun: RequestBatch) -> bool:
        """As `Agent.has_ended`."""
        return not begun.num_open

    def advance(self, wait_s: float | None = None) -> None:
        """Takes up what engine and tools have finished, after a step of the engine or, without one, of a tool.

        Args:
            wait_s: seconds to wait for a tool while nothing is generated; None waits as long as it takes.
        """
        started, is_generating, num_tokens = perf_counter(), self.engine.num_in_flight > 0, 0
        for completion in self.engine.step() if is_generating else ():
            batch, episode = self._open[completion.id]
            num_tokens += len(completion.token_ids)
            _append(episode, completion)
            self._continue(completion.id, episode, batch.sampling, self._turns.of_completion(episode, completion))
            self._close_if_over(completion.id)
        for answer in self._answers.take(is_generating, wait_s):
            number = self._waiting.pop(answer.key)
            batch, episode = self._open[number]
            episode.answers[answer.key] = answer
            self._continue_with_results(number, episode, batch.sampling)
            self._close_if_over(number)
        elapsed_s, costs = perf_counter() - started, self.costs
        self.costs = SamplingCosts(
            costs.generating_s + is_generating * elapsed_s,
            costs.tools_s + (not is_generating) * elapsed_s,
            costs.num_tokens + num_tokens,
        )

    def trajectories(self, batch: RequestBatch) -> list[Trajectory]:
        """What became of requests of which none is open, in their order."""
        return [self._trajectory(episode) for episode in batch.episodes]

    def pop_costs(self) -> SamplingCosts:
        """As `Agent.pop_costs`."""
        costs, self.costs = self.costs, SamplingCosts()
        return costs

    def sleep(self, weights_follow: bool) -> None:
        """As `Agent.sleep`."""
        if not self._open:
            self.engine.sleep(weights_follow)

    def _close_if_over(self, number: int) -> None:
        batch, episode = self._open[number]
        if episode.finish_reason is not None:
            del self._open[number]
            batch.num_open -= 1

    def _continue(
        self, number: int, episode: Episode, sampling: SamplingParams, calls: Sequence[ParsedCall] = ()
    ) -> None:
        """Calls the tools if there are calls, else generates on, unless the trajectory is over."""
        if episode.finish_reason is not None or not self._turns.admit(episode, calls):
            return
        remaining = self.limits.max_response_tokens - episode.response_length
        if remaining <= 0:
            episode.finish_reason = "length"
        elif calls:
            submitted = self._turns.submit(episode)
            self._answers.expect(submitted)
            self._waiting |= dict.fromkeys(submitted, number)
            self._continue_with_results(number, episode, sampling)
        else:
            seed = derive_seed(episode.request.seed, episode.num_turns)
            stop = self._turns.stop_strings
            self.engine.submit(Request(number, tuple(episode.token_ids), remaining, stop, seed, sampling))
            episode.num_turns += 1

    def _continue_with_results(self, number: int, episode: Episode, sampling: SamplingParams) -> None:
        """Goes on once all calls of the turn are answered."""
        if len(episode.answers) == len(episode.calls):
            self._turns.write_results(episode)
            self._continue(number, episode, sampling)

    def _trajectory(self, episode: Episode) -> Trajectory:
        assert episode.finish_reason is not None
        prompt, turns = episode.request.prompt, self._turns
        segments = tuple(turns.text.segments(episode.token_ids, episode.response_mask, len(prompt.token_ids)))
        return Trajectory(
            prompt=prompt,
            token_ids=torch.tensor(episode.token_ids),
            response_mask=torch.tensor(episode.response_mask),
            behavior_log_probs=torch.tensor(episode.log_probs),
            policy_versions=torch.tensor(episode.versions),
            segments=segments,
            tool_calls=tuple(episode.tool_calls),
            finish_reason=episode.finish_reason,
            origin=episode.request.origin,
            cached_tokens=episode.cached_tokens,
            reusable_tokens=episode.reusable_tokens,
            reused_tokens=episode.reused_tokens,
            invented_results=turns.num_invented_results(episode, segments),
        )


def phase_of(requests: Iterable[RolloutRequest]) -> str:
    """What seconds of waiting for requests count to."""
    return "branching" if any(request.origin for request in requests) else "sampling"


@contextmanager
def waiting(timer: PhaseTimer, phase: str, loop: AgentLoop) -> Iterator[None]:
    """Counts the time of waiting for trajectories to `phase`, and to tools what the engine had to wait for those."""
    started, tools_s = perf_counter(), loop.costs.tools_s
    with timer(phase):
        yield
    # What another thread has counted may have begun before this wait.
    timer.move(min(perf_counter() - started, loop.costs.tools_s - tools_s), phase, "tools")


def _append(episode: Episode, completion: Completion) -> None:
    """Adds what was sampled, and counts what of the context the engine's cache could have served, and has."""
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
