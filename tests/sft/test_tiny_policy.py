from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from appo.environments.houses import HouseDemonstrations, HouseProblems
from appo.sft import HouseConversations, TinyPolicy
from tests.sft.small_source import SOURCE, TINY


def test_the_tokenizer_gives_the_same_ids_before_saving_and_after_loading(tokenizer):
    built = TINY.build_tokenizer()
    texts = [m.content for c in SOURCE.load("train") for m in c.messages] + ["Zürich 1234 </think>\n\n x=1", " 37 37"]
    for text in texts:
        ids = built(text, add_special_tokens=False)["input_ids"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids) == text


def test_tags_and_numbers_are_single_tokens(tokenizer):
    for tag in ("think", "search", "python", "result", "answer"):
        for text in (f"<{tag}>", f"</{tag}>", f" </{tag}>"):
            assert len(tokenizer.encode(text, add_special_tokens=False)) == 1
    number = tokenizer.encode("37", add_special_tokens=False)
    assert len(number) == 1
    for text in ("What is 37?", "12+37", " <result>\n37\n</result>", " \\boxed{ 37 }"):
        assert number[0] in tokenizer.encode(text, add_special_tokens=False)
    assert all(len(tokenizer.encode(str(i), add_special_tokens=False)) == 1 for i in range(200))


def test_the_tags_that_are_single_tokens_are_named():
    source = HouseConversations(HouseDemonstrations(HouseProblems({"rooms_2": 1.0}, num_train=20), wrong_shares={}))
    tokenizer = TinyPolicy(source, tags=("house",)).build_tokenizer()
    for text in ("<house>", "</house>", " </house>"):
        assert len(tokenizer.encode(text)) == 1
    assert len(tokenizer.encode("<python>")) > 1


def test_a_tiny_policy_knows_its_end_and_padding_tokens(folder, tokenizer):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.vocab_size == len(tokenizer)


def test_the_seed_alone_decides_the_weights(tokenizer):
    first, again = (TINY.build_model(tokenizer).state_dict() for _ in range(2))
    other = replace(TINY, seed=1).build_model(tokenizer).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 20, "num_heads": 4}, "hidden_size must be a multiple of 2 [*] num_heads = 8, got 20"),
        ({"vocab_size": 300}, "vocab_size must be at least 600.*got 300"),
    ],
)
def test_a_tiny_policy_that_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TinyPolicy(SOURCE, **options)
