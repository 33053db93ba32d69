"""A trajectory in flight, and what it may use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from appo.core.trajectory import NOT_SAMPLED, BranchPoint, FinishReason, Prompt, ToolCall
from appo.tools import ParsedCall, ToolAnswer


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """Asks for one trajectory.

    Attributes:
        prompt: what is asked.
        seed: of all that is sampled from here on.
        origin: the branch point to start from; None starts behind the prompt.
        may_call_tools: False ends the trajectory at its first call.
    """

    prompt: Prompt
    seed: int
    origin: BranchPoint | None = None
    may_call_tools: bool = True


@dataclass(frozen=True)
class Limits:
    """What one trajectory may use."""

    max_response_tokens: int = 2048
    """Tokens behind the prompt, tool output included."""
    max_tool_calls: int = 3
    """Calls over all tools, refused ones left out."""
    max_result_tokens: int = 512
    """Tokens of one tool's answer; the rest is cut."""
    max_calls_per_tool: Mapping[str, int] = field(default_factory=dict)
    """Most calls to one tool, by its name; tools left out have only the limit over all tools."""
    at_tool_limit: Literal["end", "refuse"] = "end"
    """A call beyond a limit ends the trajectory, or is answered with a refusal."""
    max_refusals: int = 3
    """Calls that are refused; a further one ends the trajectory."""
    repeated_calls: Literal["run", "reuse"] = "run"
    """A call that equals an earlier one of its trajectory is run, or answered with what that one was answered with; a
    call that failed is always run again."""
    tool_attempts: int = 1
    """At a call whose tool breaks, as by an error of the network; what a tool answers, be it a failure or nothing, is
    not tried again."""
    max_parallel_tools: int = 32
    """Tool calls of all trajectories that run at once."""

    def __post_init__(self) -> None:
        for name in ("max_response_tokens", "max_result_tokens", "tool_attempts", "max_parallel_tools"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"rollout.limits.{name} must be positive, got {value}")
        for name in ("max_tool_calls", "max_refusals"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"rollout.limits.{name} must not be negative, got {value}")
        for tool, limit in self.max_calls_per_tool.items():
            if limit < 0:
                raise ValueError(f"rollout.limits.max_calls_per_tool must not be negative, got {limit} for {tool!r}")


@dataclass(eq=False)
class Episode:
    """A trajectory in flight."""

    request: RolloutRequest
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
    calls: dict[int, ParsedCall] = field(default_factory=dict)
    """Calls of the last turn, by number, until the results of all of them stand in the context."""
    answers: dict[int, ToolAnswer] = field(default_factory=dict)
    """What is known of them, likewise."""
    finish_reason: FinishReason | None = None
    invented_results: int = 0
    """Results that the policy wrote itself, among the tokens that were dropped behind a call."""

    @property
    def response_length(self) -> int:
        return len(self.token_ids) - len(self.request.prompt.token_ids)

    @property
    def num_refusals(self) -> int:
        """Calls so far, those of the last turn included, that were refused."""
        return sum(failure == "refused" for _, failure in self._all_calls())

    def num_calls(self, tool: str | None = None) -> int:
        """Calls so far to one tool, or to all, those of the last turn included and refused ones left out."""
        return sum(failure != "refused" and tool in (None, name) for name, failure in self._all_calls())

    def earlier_result(self, tool: str, argument: str) -> str | None:
        """What an equal call was answered with, if there was one that did not fail."""
        for call in self.tool_calls:
            if (call.tool, call.argument, call.failure) == (tool, argument, None):
                return call.result
        return None

    def _all_calls(self) -> Iterator[tuple[str, str | None]]:
        """Tool and failure of every call so far."""
        for call in self.tool_calls:
            yield call.tool, call.failure
        for number, pending in self.calls.items():
            yield pending.tool, self.answers[number].failure if number in self.answers else None

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


def open_episode(request: RolloutRequest) -> Episode:
    """An episode that holds the prompt, or all that a branch shares with its parent."""
    if request.origin is None:
        prompt_ids = list(request.prompt.token_ids)
        size = len(prompt_ids)
        return Episode(request, prompt_ids, [False] * size, [0.0] * size, [NOT_SAMPLED] * size, [], turn_start=size)
    parent, end = request.origin.trajectory, request.origin.position + 1
    mask = parent.response_mask[:end].tolist()
    turn_start = end
    while turn_start > parent.prompt_length and mask[turn_start - 1]:
        turn_start -= 1
    return Episode(
        request,
        parent.token_ids[:end].tolist(),
        mask,
        parent.behavior_log_probs[:end].tolist(),
        parent.policy_versions[:end].tolist(),
        [call for call in parent.tool_calls if call.position < end],
        turn_start,
        known_tokens=min(end, len(parent) - 1),
        known_version=int(parent.policy_versions.max()),
    )
