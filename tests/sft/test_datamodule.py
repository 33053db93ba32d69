from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from appo.sft import SupervisedDataModule
from appo.sft.encoding import encode
from tests.sft.small_source import SOURCE


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_batches_hold_what_was_encoded(folder, tokenizer, loss_on):
    data = SupervisedDataModule(SOURCE, str(folder), loss_on=loss_on, batch_size=8)
    data.setup("fit")
    examples = data.examples["validation"]
    assert examples == encode(SOURCE.load("validation"), tokenizer)
    (batch,) = data.val_dataloader()
    for row, example in enumerate(sorted(examples, key=len)):
        length = len(example)
        assert batch.token_ids[row, :length].tolist() == list(example.token_ids)
        assert not batch.loss_mask[row, length:].any()
        expected = [False, *(written or loss_on == "all" for written in example.is_written[1:])]
        assert batch.loss_mask[row, :length].tolist() == expected


@pytest.mark.parametrize("key", ["batch_size", "max_tokens"])
def test_data_options_out_of_range_are_refused(key):
    with pytest.raises(ValueError, match=f"data.{key} must be positive, got 0"):
        SupervisedDataModule(SOURCE, "policy", **{key: 0})


def test_a_conversation_that_is_too_long_is_refused(folder):
    data = SupervisedDataModule(SOURCE, str(folder), max_tokens=20)
    with pytest.raises(
        ValueError, match=r"data.max_tokens must not be less than the longest train conversation, \d+ tokens, got 20"
    ):
        data.setup("fit")


def test_a_missing_folder_and_a_tokenizer_without_a_template_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="/nowhere/policy"):
        SupervisedDataModule(SOURCE, "/nowhere/policy").setup("fit")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(folder)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have a chat template, got none"):
        SupervisedDataModule(SOURCE, str(tmp_path)).setup("fit")
