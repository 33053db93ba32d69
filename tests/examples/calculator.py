"""The task of `examples/appo_in_one_file.py` for the framework: its tokenizer, its tool, and its reward."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import Reward
from appo.tools import Tool
from examples import appo_in_one_file as one_file


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The file's vocabulary; a conversation is its question."""
    vocabulary = {token: token_id for token_id, token in enumerate(one_file.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    pieces = Regex("|".join(map(re.escape, one_file.VOCABULARY)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    made.chat_template = "{{ messages[-1]['content'] }}"
    return made


class Add(Tool):
    """Adds two numbers."""

    @property
    def name(self) -> str:
        return "add"

    def __call__(self, argument: str) -> str:
        return one_file.use_tool(argument).removeprefix("<result>").removesuffix("</result>")


@dataclass(frozen=True)
class IsSum(Reward):
    """The file's reward."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        reward = one_file.reward([one_file.Token(token_id) for token_id in trajectory.token_ids.tolist()])
        return RewardResult(reward, {"accuracy": reward})
