"""The records of agentic sampling: prompts, trajectories, and the points where branches leave them.

Positions count over the whole sequence, prompt included, everywhere in the project: position 0 is the prompt's first
token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat

from torch import Tensor

FinishReason = Literal["eos", "length", "tool_limit"]
"""Why a trajectory ended: the model ended it, it reached the response limit, or it called a tool once too often."""

NOT_SAMPLED = -1
"""The policy version of a token that no policy sampled: prompt and tool output."""


@dataclass(frozen=True)
class Prompt:
    """A question as the policy sees it.

    Attributes:
        id: unique in its data source and stable over runs.
        question: plain text, for people.
        token_ids: the question in its chat template, up to where the response begins.
        answers: accepted answers; any of them is right.
        source: the part of the data it comes from; metrics are also reported by source.
        is_public: whether logs and files may hold its text, and that of responses to it.
        columns: further fields of its row, by name, for rewards; no file holds them.
    """

    id: str
    question: str
    token_ids: tuple[int, ...]
    answers: tuple[str, ...]
    source: str = ""
    is_public: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Segment:
    """A stretch of a response that one side wrote.

    Attributes:
        text: decoded, but for tokens that frame messages, such as the end token; where the chat template opens a
            thought for the policy, the tag that does so begins the policy's text.
        is_generated: True if the policy sampled it, False for tool output.
    """

    text: str
    is_generated: bool


@dataclass(frozen=True)
class ToolCall:
    """One use of a tool within a trajectory.

    Attributes:
        tool: name the call was addressed to; empty if a malformed call named none.
        argument: what the model passed; arguments by name as JSON.
        result: what went back into the context, before it was wrapped in the call syntax.
        failure: None if the tool answered, else the kind of failure: `error`, `timeout`, `unknown`, `malformed`,
            `invalid`, `unavailable` or `refused`.
        duration_s: seconds between submission and result.
        position: of the first token that follows the turn with the call: the wrapped results of all of its calls.
    """

    tool: str
    argument: str
    result: str
    failure: str | None
    duration_s: float
    position: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A prompt and all that followed, in token ids that were carried through, never re-encoded. `T` tokens.

    A branch holds its whole sequence: the tokens it shares with its parent, then its own.

    Attributes:
        prompt: what was asked.
        token_ids: ``[T]`` int64, prompt then response, tool output included.
        response_mask: ``[T]`` bool, True on tokens the policy sampled.
        behavior_log_probs: ``[T]`` float32, of the sampled tokens under the distribution they were drawn from; 0
            elsewhere.
        policy_versions: ``[T]`` int64, version of the weights that sampled each token; `NOT_SAMPLED` elsewhere.
        segments: the response as text, one segment a run of `response_mask`.
        tool_calls: in order, those within the shared prefix included.
        finish_reason: why it ended.
        origin: where a branch left its parent; None for a root.
        cached_tokens: prompt and prefix tokens that the engine served from its prefix cache, summed over turns.
        reusable_tokens: those that the same weights had computed before, for an earlier turn or for the parent.
        reused_tokens: reusable ones that were served from the prefix cache.
        sampling_log_probs: ``[T]`` float32, of the sampled tokens under the trainer's copy of the policy that sampled
            them; 0 elsewhere. None where it was not asked before it was updated.
        invented_results: results of tools that the policy wrote itself, those that were dropped behind a call included.
    """

    prompt: Prompt
    token_ids: Tensor
    response_mask: Tensor
    behavior_log_probs: Tensor
    policy_versions: Tensor
    segments: tuple[Segment, ...]
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    origin: BranchPoint | None = None
    cached_tokens: int = 0
    reusable_tokens: int = 0
    reused_tokens: int = 0
    sampling_log_probs: Tensor | None = None
    invented_results: int = 0

    def __post_init__(self) -> None:
        length = self.token_ids.shape
        for name in ("response_mask", "behavior_log_probs", "policy_versions", "sampling_log_probs"):
            value = getattr(self, name)
            if value is not None and value.shape != length:
                raise ValueError(
                    f"{name} of trajectory {self.prompt.id} must have shape {list(length)}, got {list(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def prompt_length(self) -> int:
        """Tokens before the response."""
        return len(self.prompt.token_ids)

    @property
    def response_length(self) -> int:
        """Tokens after the prompt, tool output included."""
        return len(self) - self.prompt_length

    @property
    def num_shared(self) -> int:
        """Tokens at its begin that a branch shares with its parent, the prompt included; 0 of a root."""
        return 0 if self.origin is None else self.origin.position + 1

    @property
    def num_own_tokens(self) -> int:
        """Tokens the policy sampled for it; those that a branch shares with its parent belong to the parent."""
        return int(self.response_mask[self.num_shared :].sum())

    @property
    def num_own_calls(self) -> int:
        """Tool calls that were made for it; those that a branch shares with its parent belong to the parent."""
        return sum(call.position >= self.num_shared for call in self.tool_calls)

    @property
    def text(self) -> str:
        """The response, tool output included."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, eq=False)
class BranchPoint:
    """Where a branch leaves its parent: the two share positions ``0 .. position``.

    Attributes:
        trajectory: the parent, a root or a branch.
        position: last shared position.
        score: what the scorer gave the position that was chosen.
    """

    trajectory: Trajectory
    position: int
    score: float

    def __post_init__(self) -> None:
        last = len(self.trajectory) - 1
        if not self.trajectory.prompt_length - 1 <= self.position <= last:
            raise ValueError(
                f"position must lie between the last prompt token {self.trajectory.prompt_length - 1} and the last "
                f"token {last} of trajectory {self.trajectory.prompt.id}, got {self.position}"
            )


@dataclass(frozen=True)
class RewardResult:
    """A trajectory's reward and what it was made of.

    Whatever is a number, such as a scalar of numpy or torch, is kept as a float.

    Attributes:
        reward: the return that is trained on; finite.
        parts: what it was made of, for logs and metrics; `accuracy` in [0, 1] is the share of the answer that is right.
        reason: in words, for people.
        answer: what was taken for the trajectory's answer; a majority vote counts those that mean the same as one. None
            if there is none.
    """

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    answer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", _number("the reward", self.reward))
        parts = {str(name): _number(f"the part {name!r} of a reward", value) for name, value in self.parts.items()}
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "reason", str(self.reason))
        object.__setattr__(self, "answer", None if self.answer is None else str(self.answer))


def _number(name: str, value: object) -> float:
    try:
        if isinstance(value, SupportsFloat):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # what several numbers, such as an array, say
        pass
    raise TypeError(f"{name} must be one number, got {value!r}")
