"""A tiny untrained policy and its tokenizer, built from the texts that it will learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from appo.policy.saving import save_policy
from appo.prompts.base import usable
from appo.sft.conversations import ConversationSource

PAD, EOS, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

MAX_NUMBER = 199
"""Greatest whole number that is sure to be one token."""

# A white space that always stands beside a tag is part of its token: shorter turns, faster rollouts.
_WORDS = (" <result>\n", "\n</result>", " \\boxed{", " }")

# Words with the space before them, and numbers of up to three digits without: "37" is the same token in a question, in
# code and in a result. The space before a number belongs to the word before it, which tells what the number is for.
_PRE_TOKENS = r"\p{N}{1,3}| ?\p{L}+(?: (?=\p{N}))?| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True)
class TinyPolicy:
    """A Llama-style policy with random weights; a few million parameters at most, for CPUs.

    Its tokenizer is byte-level BPE trained on `source`; tags, and whole numbers up to 199, are single tokens.
    """

    source: ConversationSource
    """The texts that the tokenizer is trained on."""
    hidden_size: int = 128
    """Width of the residual stream; a multiple of twice `num_heads`."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads."""
    mlp_size: int = 384
    """Width inside the feed-forward layers."""
    max_tokens: int = 512
    """Longest sequence."""
    vocab_size: int = 2048
    """Most tokens the tokenizer may have; texts with few words need fewer."""
    tags: tuple[str, ...] = ("think", "search", "python", "result", "answer")
    """Words in angle brackets that are single tokens with them; others are of three tokens and more."""
    seed: int = 0
    """Of the weights."""

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * num_heads = {2 * self.num_heads}, got {self.hidden_size}"
            )
        if self.vocab_size < 600:
            raise ValueError(f"vocab_size must be at least 600 to hold bytes, numbers and tags, got {self.vocab_size}")

    def build(self, folder: Path) -> None:
        """Writes the untrained policy and its tokenizer as a Hugging Face folder."""
        tokenizer = self.build_tokenizer()
        save_policy(self.build_model(tokenizer), tokenizer, folder)

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Trains the tokenizer."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PRE_TOKENS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        words = [*(f"{prefix}{tag}>" for tag in self.tags for prefix in ("<", "</", " </")), *_WORDS]
        special = [PAD, EOS, USER, ASSISTANT, SYSTEM]
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - len(words),
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._texts(), trainer)
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
        wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
        wrapped = wrap(
            tokenizer_object=tokenizer,
            eos_token=EOS,
            pad_token=PAD,
            additional_special_tokens=[USER, ASSISTANT, SYSTEM],
            clean_up_tokenization_spaces=False,
        )
        wrapped.chat_template = CHAT_TEMPLATE
        return wrapped

    def build_model(self, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
        """Draws the weights."""
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.mlp_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            max_position_embeddings=self.max_tokens,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return LlamaForCausalLM(config)

    def _texts(self) -> Iterator[str]:
        """What is to be learned, and every number often enough to become one token."""
        for conversation in usable(self.source.rows("train"), []):
            for message in conversation.messages:
                yield from (segment.text for segment in message.segments)
        for _ in range(20):
            yield from (str(number) for number in range(MAX_NUMBER + 1))
