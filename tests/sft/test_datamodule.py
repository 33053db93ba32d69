from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from appo.policy.loading import load_tokenizer
from appo.prompts import BenchmarkQuestions
from appo.sft import FileConversations, SupervisedDataModule
from appo.sft.encoding import ConversationEncoder
from appo.sft.loading import ConversationLoader
from tests.sft.small_source import SOURCE, write_jsonl


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_batches_hold_what_was_encoded(folder, tokenizer, loss_on):
    data = SupervisedDataModule(SOURCE, str(folder), loss_on=loss_on, batch_size=8)
    data.setup("fit")
    examples = data.examples["validation"]
    assert examples == ConversationEncoder(tokenizer)(SOURCE.load("validation"))
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


def test_rows_that_cannot_be_used_and_questions_of_benchmarks_are_left_out_with_an_account(folder, tmp_path, caplog):
    def talk(asked, *replies):
        said = [{"from": "human", "value": asked}, *({"from": "gpt", "value": reply} for reply in replies)]
        return {"conversations": said}

    (tmp_path / "hle.jsonl").write_text(json.dumps({"question": "Where was Ada born?", "answer": ["x"]}))
    path = write_jsonl(
        tmp_path / "a.jsonl", talk("b?", "c"), talk("where was  Ada born", "c"), talk("b?"), talk("b?", "c " * 99),
        talk("Answer in tags.\n\n**Question**: Where was Ada born?\n", "c"),
    )  # fmt: skip
    data = SupervisedDataModule(
        FileConversations(path), str(folder), max_tokens=60, unusable_rows="skip", contaminated_rows="remove",
        contamination_sources=(BenchmarkQuestions("hle", folder=str(tmp_path)),),
    )  # fmt: skip
    with caplog.at_level("WARNING"):
        data.setup("fit")
    assert len(data.examples["train"]) == 1
    assert data.examples["validation"] == []
    assert f"train: 2 rows are left out: 1 no_response ({path}: 3), 1 too_long ({path}: 4)" in caplog.text
    assert "train: 2 questions stand in a benchmark and are left out: 2 hle (ids 2, 5)" in caplog.text
    data = SupervisedDataModule(FileConversations(path), str(folder), max_tokens=60)
    message = (
        r"line 3 of .* must have a message of the assistant, got none; data.unusable_rows=skip would leave out .* 2 "
    )
    with pytest.raises(ValueError, match=message.replace(" 2 ", " 1 more")):
        data.setup("fit")


def test_a_conversation_that_the_template_refuses_is_unusable(folder, tmp_path):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"})
    with pytest.raises(
        ValueError, match=r"got 0 that stand in a benchmark, and unusable rows: 1 template \(.*: 1\): row 1"
    ):
        ConversationLoader(ConversationEncoder(tokenizer), 60, "skip")(FileConversations(path), "train")


def test_a_missing_folder_and_a_tokenizer_without_a_template_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="/nowhere/policy"):
        SupervisedDataModule(SOURCE, "/nowhere/policy").setup("fit")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(folder)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have a chat template, got none"):
        SupervisedDataModule(SOURCE, str(tmp_path)).setup("fit")
