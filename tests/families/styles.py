"""How families of models write a conversation, and the tokens that they write it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_TEXT = [
    "What is 37 + 48? <python>print(37 + 48)</python> gives 85. <answer>85</answer>",
    "Who lives in Oslo? <search>people in Oslo</search> says Ana Ruiz. <think>So it is her.</think>",
    "Zürich, café, naïve, 東京 and 🎉 need several bytes a character.",
]


@dataclass(frozen=True)
class Style:
    """What stands around messages.

    Attributes:
        user: before a question.
        user_end: behind it.
        assistant: before a reply.
        end: behind it.
        bos: before everything; empty if nothing does.
        eos: what ends a text; `end` ends a reply.
        pad: fills rows.
        special: tokens beside these.
        adds_bos: whether the tokenizer itself puts `bos` before every text too.
    """

    user: str
    user_end: str
    assistant: str
    end: str
    bos: str = ""
    eos: str = "<|endoftext|>"
    pad: str = "<|endoftext|>"
    special: tuple[str, ...] = ()
    adds_bos: bool = False

    @property
    def template(self) -> str:
        """The chat template."""
        return (
            f"{{{{ {self.bos!r} }}}}{{% for message in messages %}}{{% if message.role == 'assistant' %}}"
            f"{{{{ {self.assistant!r} + message.content + {self.end!r} }}}}{{% else %}}"
            f"{{{{ {self.user!r} + message.content + {self.user_end!r} }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {self.assistant!r} }}}}{{% endif %}}"
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level BPE with the special tokens of the style."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(_TEXT * 3, trainer)
        special = dict.fromkeys(token for token in (self.pad, self.bos, self.eos, *self.special) if token)
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
        if self.adds_bos:
            number = tokenizer.token_to_id(self.bos)
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", pair=f"{self.bos} $A $B", special_tokens=[(self.bos, number)]
            )
        wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
        wrapped = wrap(
            tokenizer_object=tokenizer,
            bos_token=self.bos or None,
            eos_token=self.eos,
            pad_token=self.pad,
            clean_up_tokenization_spaces=False,
        )
        wrapped.chat_template = self.template
        return wrapped


CHATML = Style(
    "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n",
    eos="<|im_end|>", special=("<|im_start|>", "<|endoftext|>"),
)  # fmt: skip
LLAMA = Style(
    "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), adds_bos=True,
)  # fmt: skip
MISTRAL = Style(
    "[INST] ", " [/INST]", " ", "</s>", "<s>", "</s>", "<unk>", ("[INST]", "[/INST]"), adds_bos=True
)  # fmt: skip
GEMMA = Style(
    "<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n", "<bos>", "<eos>", "<pad>",
    ("<start_of_turn>", "<end_of_turn>"), adds_bos=True,
)  # fmt: skip
PHI = Style(
    "<|user|>\n", "<|end|>\n", "<|assistant|>\n", "<|end|>\n", "<s>", special=("<|user|>", "<|assistant|>", "<|end|>")
)  # fmt: skip
TULU = Style("<|user|>\n", "\n", "<|assistant|>\n", "<|endoftext|>\n", "<|endoftext|>", pad="<|pad|>")
GRANITE = Style(
    "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>",
    "<|end_of_text|>\n", eos="<|end_of_text|>", pad="<|end_of_text|>",
    special=("<|start_of_role|>", "<|end_of_role|>"),
)  # fmt: skip
GLM = Style(
    "<|user|>\n", "", "<|assistant|>\n", "", "[gMASK]<sop>",
    special=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"),
)  # fmt: skip
COHERE = Style(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<PAD>",
    ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"), adds_bos=True,
)  # fmt: skip
PLAIN = Style("User: ", "\n\n", "Assistant: ", "<|endoftext|>\n")
_BAR, _BLOCK = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
_USER, _ASSISTANT, _BOS, _END, _PAD = (
    f"<{_BAR}{name.replace('_', _BLOCK)}{_BAR}>"
    for name in ("User", "Assistant", "begin_of_sentence", "end_of_sentence", "_pad_")
)
DEEPSEEK = Style(_USER, "", _ASSISTANT, _END, _BOS, _END, _PAD, (_USER, _ASSISTANT), adds_bos=True)
