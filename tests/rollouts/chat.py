"""A tokenizer with a chat template of the structure that Qwen's have, written for the tests."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The last assistant turn shows its thought even if it has none, earlier ones do not: a rendered conversation does not
# begin with the rendering of a shorter one.
TEMPLATE = """
{%- if tools %}<|im_start|>system
Functions:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
  {%- if message.role == "tool" %}
    {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{ "<|im_start|>user" }}{% endif %}
    {{- "\n<tool_response>\n" + message.content + "\n</tool_response>" }}
    {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{ "<|im_end|>\n" }}{% endif %}
  {%- else %}
    {{- "<|im_start|>" + message.role + "\n" }}
    {%- if message.role == "assistant" and loop.last %}{{ "<think>\n\n</think>\n\n" }}{% endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
      {{- "\n<tool_call>\n" }}{{ {"name": call.name, "arguments": call.arguments} | tojson }}{{ "\n</tool_call>" }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- "<|im_start|>assistant\n" }}
  {%- if not_thinking %}{{ "<think></think>" }}{% endif %}
{%- endif %}"""

_TEXTS = [
    '<tool_response>\n4.\n</tool_response>\n<tool_call>\n{"name": "double", "arguments": {"input": "2"}}\n</tool_call>'
]


def make_chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose tokens reach over the seams of a template, such as a full stop and a line end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>", "<|im_start|>", "<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )
