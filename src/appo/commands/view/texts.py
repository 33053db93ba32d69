"""The text of single tokens, such that what stands in a row reads as the whole does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from appo.policy.loading import load_tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 8
"""Tokens that may share one character."""


class TokenTexts:
    """Looks up texts of tokens.

    Args:
        tokenizer: of the policy.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """One text a token; together they are the text of all.

        A character that several tokens share stands at the last of them, and the others are empty. What never becomes a
        character is the replacement character.
        """
        texts: list[str] = []
        while len(texts) < len(token_ids):
            start = len(texts)
            text = self._decode(token_ids[start : start + 1])
            length = 1
            while _BROKEN in text and length < _LONGEST and start + length < len(token_ids):
                length += 1
                text = self._decode(token_ids[start : start + length])
            if _BROKEN in text:
                text, length = self._decode(token_ids[start : start + 1]), 1
            texts += [*[""] * (length - 1), text]
        return texts

    def _decode(self, token_ids: Sequence[int]) -> str:
        key = tuple(token_ids)
        if key not in self._known:
            self._known[key] = self.tokenizer.decode(list(key), skip_special_tokens=False)
        return self._known[key]


def tokenizer_of_run(run: Path, config: DictConfig, policy: str | None) -> Any:
    """The tokenizer of the policy of a run.

    Args:
        run: its folder.
        config: what it ran with.
        policy: a folder or name that is taken instead.

    Raises:
        ValueError: if there is none where the run looked for it either.
    """
    # Absolute: `run/policy` would be taken for a name of the hub while the run has not written it yet.
    own = str((run / "policy").resolve())
    named = OmegaConf.select(config, "model.policy")
    candidates = [policy] if policy is not None else [own, *([named] if isinstance(named, str) else [])]
    errors = []
    for candidate in candidates:
        try:
            return load_tokenizer(candidate)
        except (OSError, ValueError) as error:
            errors.append(str(error))
    raise ValueError(
        f"policy must be the folder with the tokenizer of {run}: give --policy; {errors[-1] if errors else 'got none'}"
    )
