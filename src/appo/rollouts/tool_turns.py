"""The tool calls of a turn: found in sampled tokens, admitted or refused, and answered in the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from transformers import PreTrainedTokenizerBase

from appo.core.trajectory import NOT_SAMPLED, Segment, ToolCall
from appo.engines import Completion
from appo.policy.text import decode, encode
from appo.rollouts.episode import Episode, Limits
from appo.rollouts.inert_text import InertText, closing, inert_schemas, tags_of
from appo.rollouts.response_text import ResponseText
from appo.tools import CallSyntax, ParsedCall, RenderChat, TokenCodec, ToolAnswer, ToolRunner

_ANSWER_TAGS = ("<answer>",)

_MARK = "\N{END OF TRANSMISSION BLOCK}result\N{END OF TRANSMISSION BLOCK}"
"""Stands for a result where one is shown."""


class ToolTurns:
    """Reads calls from episodes and writes their results into them.

    Args:
        tokenizer: of the policy.
        runner: started, with the tools that may be called.
        syntax: how calls and results are written.
        limits: what one trajectory may use.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, runner: ToolRunner, syntax: CallSyntax, limits: Limits
    ) -> None:
        self.tokenizer = tokenizer
        self.runner = runner
        self.syntax = syntax
        self.limits = limits
        self.stop_strings = syntax.stop_strings(tuple(runner.tools))
        own = (*syntax.thought_tags, *_ANSWER_TAGS, *(f"<{tool}>" for tool in runner.tools))
        self.text = ResponseText(tokenizer, own, lambda result: syntax.format_results([result], "", self._render))
        self._codec = TokenCodec(self._encode, self._decode)
        self._render = chat_renderer(tokenizer, runner)
        shown = syntax.format_results(["."], "", self._render)
        self._inert = InertText(tokenizer, (*own, *(closing(tag) for tag in own), *tags_of(shown)))
        before, mark, _ = syntax.format_results([_MARK], "", self._render).partition(_MARK)
        self._result_tag = next(iter(reversed(tags_of(before))), "") if mark else ""
        self._numbers = count()

    def of_prefix(self, episode: Episode) -> Sequence[ParsedCall]:
        """The calls at the end of what a branch shares with its parent, if their results lie behind it."""
        origin = episode.request.origin
        if origin is None:
            return ()
        behind = origin.trajectory.response_mask[origin.position + 1 :]
        is_over = len(behind) > 0 and not behind[0]
        return self._find(episode) if self.stop_strings or is_over else ()

    def of_completion(self, episode: Episode, completion: Completion) -> Sequence[ParsedCall]:
        """The calls of the turn so far, if any.

        Engines stop neither at a string that began before the completion, nor behind the call of a tool that does not
        exist.
        """
        if not self.stop_strings:
            return self._find(episode) if completion.finish_reason == "eos" else ()
        calls = self._find(episode)
        if not calls and completion.finish_reason == "stop":
            episode.turn_start = len(episode.token_ids)  # a closing tag without an opening one calls nothing
        return calls

    def admit(self, episode: Episode, calls: Sequence[ParsedCall]) -> bool:
        """Takes up the calls of a turn, answered where no tool is asked; False if one ends the trajectory."""
        limits = self.limits
        for call in calls:
            refusal = self._refusal(episode, call)
            no_more = limits.at_tool_limit == "end" or episode.num_refusals >= limits.max_refusals
            if not episode.request.may_call_tools or (refusal is not None and no_more):
                episode.finish_reason = "tool_limit"
                return False
            number = next(self._numbers)
            if refusal is not None:
                episode.answers[number] = ToolAnswer(number, refusal, "refused", 0.0)
            elif call.error is not None:
                episode.answers[number] = ToolAnswer(number, call.error, "malformed", 0.0)
            elif limits.repeated_calls == "reuse":
                earlier = episode.earlier_result(call.tool, call.argument)
                if earlier is not None:
                    episode.answers[number] = ToolAnswer(number, earlier, None, 0.0)
            episode.calls[number] = call
        return True

    def submit(self, episode: Episode) -> list[int]:
        """Asks the tools for what is not answered yet; the numbers of these calls."""
        unanswered = [number for number in episode.calls if number not in episode.answers]
        for number in unanswered:
            call = episode.calls[number]
            argument = call.argument if call.arguments is None else call.arguments
            earlier = tuple(past for past in episode.tool_calls if past.tool == call.tool)
            self.runner.submit(number, call.tool, argument, earlier, episode)
        return unanswered

    def write_results(self, episode: Episode) -> None:
        """Puts the results of the turn, of which all calls are answered, behind it."""
        position = len(episode.token_ids)
        results = []
        for number, call in episode.calls.items():
            answer = episode.answers[number]
            # What is cut may put together what was apart.
            results.append(self._inert(self._cut(call.tool, self._inert(answer.text))))
            episode.tool_calls.append(
                ToolCall(call.tool, call.argument, results[-1], answer.failure, answer.duration_s, position)
            )
        episode.calls.clear()
        episode.answers.clear()
        turn = self._decode(episode.token_ids[episode.turn_start :])
        result_ids = encode(self.tokenizer, self.syntax.format_results(results, turn, self._render), turn)
        remaining = self.limits.max_response_tokens - episode.response_length
        episode.append(result_ids[:remaining], None, NOT_SAMPLED)
        episode.turn_start = len(episode.token_ids)

    def _refusal(self, episode: Episode, call: ParsedCall) -> str | None:
        """What to say of a call that is one too many; None if it is not."""
        if episode.num_calls() >= (limit := self.limits.max_tool_calls):
            return f"Error: the limit of {limit} tool calls is reached."
        most = self.limits.max_calls_per_tool.get(call.tool)
        if most is not None and episode.num_calls(call.tool) >= most:
            return f"Error: the limit of {most} calls of {call.tool} is reached."
        return None

    def _find(self, episode: Episode) -> Sequence[ParsedCall]:
        """The complete calls of the turn; tokens that were sampled behind them are dropped."""
        turn = episode.token_ids[episode.turn_start :]
        if not turn or not self.runner.tools:
            return ()
        opening = self._opening(episode)
        # One more than the trajectory may make, refused ones included, is what ends it.
        most = self.limits.max_tool_calls + self.limits.max_refusals + 1
        found = self.syntax.parse(opening + self._decode(turn), tuple(self.runner.tools), most)
        calls = [replace(call, end=call.end - len(opening)) for call in found]
        if calls:
            kept = self._tokens_until(turn, calls[-1])
            num_kept = self._num_results(self._decode(turn[:kept]))
            episode.invented_results += self._num_results(self._decode(turn)) - num_kept
            episode.cut(episode.turn_start + kept)
            episode.finish_reason = None
        return calls

    def num_invented_results(self, episode: Episode, segments: Sequence[Segment]) -> int:
        """Results that the policy wrote itself, those that were dropped behind a call included.

        Args:
            episode: that is over.
            segments: of its response.
        """
        written = sum(self._num_results(segment.text) for segment in segments if segment.is_generated)
        return episode.invented_results + written

    def _num_results(self, text: str) -> int:
        return text.count(self._result_tag) if self._result_tag else 0

    def _opening(self, episode: Episode) -> str:
        """What the turn begins with, though the policy has not written it."""
        start, size = episode.turn_start, len(episode.request.prompt.token_ids)
        if start > size and episode.response_mask[start - 1]:
            return ""  # behind a closing tag that called nothing
        return self.text.opening(episode.token_ids, size, start)

    def _tokens_until(self, turn: Sequence[int], call: ParsedCall) -> int:
        """How many tokens of the turn it takes to complete the call."""
        length = len(turn)
        while length > 1 and len(self._decode(turn[: length - 1])) >= call.end:
            length -= 1
        return length

    def _cut(self, name: str, text: str) -> str:
        limit, tool = self.limits.max_result_tokens, self.runner.tools.get(name)
        return self._codec.cut(text, limit) if tool is None else tool.cut(text, limit, self._codec)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids)

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)


def chat_renderer(tokenizer: PreTrainedTokenizerBase, runner: ToolRunner) -> RenderChat:
    """The chat template of a tokenizer, with the tools of a started runner."""
    tools: list[Any] | None = inert_schemas(tokenizer, runner.schemas()) or None

    def render(messages: Sequence[dict[str, str]], **options: Any) -> str:
        text = tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **options)
        assert isinstance(text, str)
        return text

    return render
