"""A response as text, begun in the state that its prompt ends in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from appo.core.trajectory import Segment
from appo.policy.text import decode, framing_ids

_TAIL_TOKENS = 24
"""Of what stands before a turn, decoded to see what it opens."""


class ResponseText:
    """Reads the text of responses.

    A chat template may open the thought itself, behind the prompt or behind the results of tools. The policy never
    writes that tag, but what it writes is a thought: the tag belongs to the text of its turn.

    Args:
        tokenizer: of the policy.
        openings: tags that may stand open where a turn begins.
        show_result: a tool's result as it goes into the context.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, openings: Sequence[str], show_result: Callable[[str], str]
    ) -> None:
        self.tokenizer = tokenizer
        self._show_result = show_result
        self._framing_ids = framing_ids(tokenizer)
        self._opening = re.compile(rf"(?:{'|'.join(map(re.escape, openings)) or r'(?!)'})\s*\Z")

    def opening(self, token_ids: Sequence[int], start: int, position: int) -> str:
        """The tag that stands open where a turn begins, with the white space behind it; empty if none does.

        Args:
            token_ids: of prompt and response.
            start: first token of the response.
            position: first token of a turn, behind the prompt or behind tool output.
        """
        if position > start:
            return self._opening_behind_results
        return self._open_at_end(self._decode(token_ids[max(0, start - _TAIL_TOKENS) : start]))

    def segments(self, token_ids: Sequence[int], response_mask: Sequence[bool], start: int) -> Iterator[Segment]:
        """The stretches of a response, in order.

        Args:
            token_ids: of prompt and response.
            response_mask: whether the policy sampled a token.
            start: first token of the response.
        """
        response_start = start
        for is_generated, run in groupby(response_mask[start:]):
            end = start + sum(1 for _ in run)
            text = self._decode(token_ids[start:end])
            if is_generated:
                text = self.opening(token_ids, response_start, start) + text
            elif end < len(token_ids):
                text = text.removesuffix(self._opening_behind_results)
            yield Segment(text, is_generated)
            start = end

    @cached_property
    def _opening_behind_results(self) -> str:
        # Of a result that is known: what a tool answers must not open a thought.
        return self._open_at_end(self._show_result("."))

    def _open_at_end(self, text: str) -> str:
        found = self._opening.search(text)
        return found[0] if found else ""

    def _decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, [token for token in token_ids if token not in self._framing_ids])
