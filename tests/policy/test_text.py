"""Tokens that end turns and frame messages."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from appo.core.trajectory import Prompt
from appo.engines.hf.stopping import end_token_ids
from appo.policy.saving import end_turns, save_policy
from appo.policy.text import framing_ids, turn_end, turn_end_id
from appo.sft import Conversation
from appo.sft.encoding import ConversationEncoder
from appo.training.options import EvaluationOptions
from appo.training.tool_checks import check_token_ids, warn_of_endless_turns, warn_of_unnamed_tools
from tests.sft.small_source import said

LIKE_TINY = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}END{% endfor %}"


@pytest.fixture
def tokenizer(policy_folder):
    """Of a base model that was given a chat template: its end token is not the one that ends turns."""
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.eos_token = "<|pad|>"
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>", "<|user|>", "<|assistant|>"]})
    return tokenizer


def test_the_end_token_of_the_template_ends_a_response(tokenizer):
    pad, end = tokenizer.convert_tokens_to_ids(["<|pad|>", "<|end|>"])
    assert end_token_ids(None, tokenizer) == {pad, end}
    assert end_token_ids(GenerationConfig(eos_token_id=[5]), tokenizer) == {pad, end, 5}


@pytest.mark.parametrize(
    ("ending", "token"),
    [
        ("<|end|>", "<|end|>"),
        ("\n<|end|>\n", "<|end|>"),
        ("<|end|>\n<|pad|>", "<|end|>"),
        ("\n", None),
        ("[END]", None),
    ],
)
def test_the_template_tells_the_token_that_ends_a_turn(tokenizer, ending, token):
    tokenizer.chat_template = LIKE_TINY.replace("END", ending)
    assert turn_end(tokenizer) == ending
    assert turn_end_id(tokenizer) == (None if token is None else tokenizer.convert_tokens_to_ids(token))


def test_a_template_that_takes_no_replies_ends_none(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no replies') }}"
    assert turn_end_id(tokenizer) is None
    assert framing_ids(tokenizer) == {tokenizer.pad_token_id}


def test_nothing_behind_the_end_of_a_turn_is_learned(tokenizer):
    tokenizer.chat_template = (
        LIKE_TINY.replace("END", "<|end|>\n<|pad|>") + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (example,) = ConversationEncoder(tokenizer)([Conversation((said("user", "a"), said("assistant", "b")))])
    written = [token for token, own in zip(example.token_ids, example.is_written, strict=True) if own]
    assert tokenizer.decode(written) == "b<|end|>"


def test_a_saved_policy_says_what_ends_its_turns(tokenizer, policy_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    model.generation_config.eos_token_id = tokenizer.pad_token_id
    end_turns(model, tokenizer)
    save_policy(model, tokenizer, tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [tokenizer.pad_token_id, end]
    # A config that names it already stays as it is.
    model.generation_config.eos_token_id = end
    end_turns(model, tokenizer)
    assert model.generation_config.eos_token_id == end


def test_a_turn_that_ends_with_plain_text_is_told(tokenizer, caplog):
    warn_of_endless_turns(tokenizer)
    assert not caplog.records
    tokenizer.chat_template = LIKE_TINY.replace("END", "</s>")
    warn_of_endless_turns(tokenizer)
    assert "ends an assistant's message with '</s>', which is no special token" in caplog.text
    assert "one of <|pad|>" in caplog.text


def test_tools_that_no_prompt_names_are_told(tokenizer, caplog):
    prompts = [
        Prompt("q", "", tuple(tokenizer.encode(text)), ("4",)) for text in ("2+2?", "Write <python>2+2</python>.")
    ]
    warn_of_unnamed_tools(tokenizer, prompts, ["python"])
    assert not caplog.records
    warn_of_unnamed_tools(tokenizer, prompts, ["python", "search"])
    assert (
        "no prompt names search: unless it was taught to, the policy does not know that it may call it" in caplog.text
    )


def test_tokens_without_an_embedding_are_refused_before_anything_is_sampled(policy_folder):
    size = AutoModelForCausalLM.from_pretrained(policy_folder).config.vocab_size
    check_token_ids([Prompt("q", "", (1, size - 1), ("4",))], str(policy_folder))
    with pytest.raises(ValueError, match=f"no tokens beyond the policy's {size} embeddings, got token {size + 1} in"):
        check_token_ids([Prompt("q", "", (1, size + 1), ("4",))], str(policy_folder))


def test_several_samples_of_the_likeliest_token_are_told(caplog):
    EvaluationOptions(samples=4, temperature=1.0)
    assert not caplog.records
    EvaluationOptions(samples=4)
    assert "rollout.evaluation.samples=4 at temperature 0 draws one trajectory" in caplog.text
