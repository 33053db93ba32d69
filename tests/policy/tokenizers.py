"""Tokenizers with the habits of real ones: small ones made on the spot, and real ones where they were fetched.

``make tokenizers`` fetches these into ``.tokenizers/``; they are tens of megabytes, so no test run does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from tests.families.styles import CHATML, DEEPSEEK, GEMMA, LLAMA

FETCHED = Path(__file__).parents[2] / ".tokenizers"

_THOUGHTFUL = """
{%- for message in messages %}
  {{- "<|im_start|>" + message.role + "\\n" }}
  {%- if message.role == "assistant" and not loop.last %}{{- message.content.split("</think>")[-1].lstrip("\\n") }}
  {%- else %}{{- message.content }}{% endif %}{{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{% endif %}"""


def _fusing() -> PreTrainedTokenizerBase:
    """ChatML whose vocabulary has tokens over the edges of tags, and a template that drops earlier thoughts."""
    tokenizer = CHATML.tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (")</", ">\n\n", "></")])
    tokenizer.chat_template = _THOUGHTFUL
    return tokenizer


def _with_special_tags() -> PreTrainedTokenizerBase:
    """Llama's, with tags that are special tokens."""
    tokenizer = LLAMA.tokenizer()
    tags = [f"<{slash}{tag}>" for tag in ("think", "answer", "python") for slash in ("", "/")]
    tokenizer.add_special_tokens({"extra_special_tokens": tags})
    return tokenizer


_SMALL: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "llama": LLAMA.tokenizer,
    "gemma": GEMMA.tokenizer,
    "deepseek": DEEPSEEK.tokenizer,
    "fusing": _fusing,
    "special tags": _with_special_tags,
}
_REAL = {"qwen3": "qwen3", "llama3_1": "llama", "deepseek_v3": "deepseek_v3"}
"""Their names as packages, and the model type by which transformers knows how to read them."""

NAMES = [*_SMALL, *(f"real {name}" for name in _REAL)]


def load(name: str) -> PreTrainedTokenizerBase:
    """One of `NAMES`; skips the test where a real one is not there."""
    kind, _, real = name.partition("real ")
    if not real:
        return _SMALL[kind]()
    if not (FETCHED / real / "tokenizer.json").is_file():
        pytest.skip(f"{FETCHED.name}/{real} was not fetched: make tokenizers")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        FETCHED / real, config=AutoConfig.for_model(_REAL[real])
    )
    return tokenizer
