"""Finds where continuations end: end tokens at once, stop strings by a look-up that leaves few tokens to decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from appo.policy.text import end_ids

_UNFINISHED_CHARACTER = "\ufffd"
"""What a tokenizer decodes the bytes of part of a character to."""

_MARGIN_TOKENS = 4
"""Decoded before the first token a stop string can begin in: some tokenizers alter the first token of a text."""


class StopRules:
    """Which tokens can end a continuation, for every set of stop strings met so far.

    A stop string is complete only when a token brings its last character. So a table over the vocabulary tells, for all
    rows of a batch in one look-up, the few tokens after which the text must be decoded.

    Args:
        tokenizer: of the policy.
        vocab_size: of the policy, padding included.
        end_ids: tokens that end any continuation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_ids: frozenset[int]) -> None:
        self.end_ids = end_ids
        self._tokenizer = tokenizer
        self._token_texts: list[str] | None = None
        self._numbers: dict[tuple[str, ...], int] = {}
        self._table = torch.zeros(0, vocab_size, dtype=torch.bool)
        self.number_of(())

    def number_of(self, stop: tuple[str, ...]) -> int:
        """The row of `may_end` for a set of stop strings, made when it is first met."""
        if stop not in self._numbers:
            self._numbers[stop] = len(self._table)
            self._table = torch.cat([self._table, self._completing_tokens(stop)[None].to(self._table.device)])
        return self._numbers[stop]

    def may_end(self, numbers: Tensor, token_ids: Tensor) -> Tensor:
        """Tells where a token ends its row, or must be looked at by `find_stop`.

        Args:
            numbers: ``[B]`` int64, of each row's stop strings.
            token_ids: ``[B]`` int64, sampled last.

        Returns:
            ``[B]`` bool.
        """
        if self._table.device != token_ids.device:
            self._table = self._table.to(token_ids.device)
        return self._table[numbers, token_ids]

    def find_stop(self, token_ids: Sequence[int], stop: tuple[str, ...]) -> str | None:
        """The stop string that the last token of a continuation completes; of several, the one that ends first.

        Args:
            token_ids: the continuation so far, no earlier token of which completed a stop string.
            stop: strings looked for.
        """
        if not stop:
            return None
        window = max(len(string.encode()) for string in stop) + _MARGIN_TOKENS
        text = self._decode(token_ids[-window:])
        ends = {string: text.find(string) + len(string) for string in stop if string in text}
        return min(ends, key=lambda string: ends[string]) if ends else None

    def _completing_tokens(self, stop: tuple[str, ...]) -> Tensor:
        vocab_size = self._table.shape[1]
        if stop and self._token_texts is None:
            self._token_texts = [self._decode([token]) for token in range(vocab_size)]
        texts = self._token_texts if stop and self._token_texts is not None else [""] * vocab_size
        flags = [
            token in self.end_ids or any(may_complete(text, string) for string in stop)
            for token, text in enumerate(texts)
        ]
        return torch.tensor(flags)

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def load_generation_config(policy: str, config: PreTrainedConfig) -> GenerationConfig:
    """The generation config of a policy that is not loaded."""
    try:
        return GenerationConfig.from_pretrained(policy)
    except OSError:  # the file is optional; what it would say stands in the model's configuration then
        return GenerationConfig.from_model_config(config)


def end_token_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a continuation: those of the generation config, of the tokenizer and of its chat template."""
    of_config = config.eos_token_id if config is not None else None
    ids = {*end_ids(tokenizer), *(of_config if isinstance(of_config, list) else [of_config])}
    return frozenset(token for token in ids if token is not None)


def may_complete(token_text: str, stop: str) -> bool:
    """False only if a token of this text never brings the last character of `stop`.

    The characters of the token up to one like the last of `stop` must either hold `stop` or continue its beginning.
    """
    if _UNFINISHED_CHARACTER in token_text and not stop.isascii():
        return True
    index = token_text.find(stop[-1])
    while index >= 0:
        head = token_text[: index + 1]
        if head.endswith(stop) or stop.endswith(head):
            return True
        index = token_text.find(stop[-1], index + 1)
    return False
