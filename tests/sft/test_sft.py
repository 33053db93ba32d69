from __future__ import annotations

import json
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from appo.core.trajectory import Segment
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.problems import WorldProblems
from appo.environments.world import World
from appo.policy.loading import load_tokenizer
from appo.sft import (
    Conversation,
    JsonlConversations,
    Message,
    SupervisedBatch,
    SupervisedDataModule,
    SupervisedModule,
    TinyPolicy,
    WorldConversations,
)
from appo.sft.encoding import encode
from appo.sft.sampler import LengthBucketSampler

SOURCE = WorldConversations(WorldDemonstrations(WorldProblems(num_train=64, num_validation=8)))
TINY = TinyPolicy(SOURCE, hidden_size=16, num_layers=1, num_heads=2, mlp_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    TINY.build(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(str(folder))


def said(role, *parts):
    """A message; every second part of an assistant's is tool output."""
    return Message(role, tuple(Segment(text, role == "assistant" and i % 2 == 0) for i, text in enumerate(parts)))


def write_jsonl(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


def fit(module, data, folder, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data)
    return trainer


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


def test_what_the_assistant_wrote_is_marked_and_tool_output_is_not(tokenizer):
    call, result, answer = "<search> a </search>", " <result>\nb\n</result>", "<answer> b </answer>"
    (example,) = encode([Conversation((said("user", "who"), said("assistant", call, result, answer)))], tokenizer)
    pieces = [("<|user|>who<|end|><|assistant|>", 0), (call, 1), (result, 0), (answer + "<|end|>", 1)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
    assert example.token_ids == tuple(i for piece in ids for i in piece)
    assert example.is_written == tuple(
        bool(written) for piece, (_, written) in zip(ids, pieces, strict=True) for _ in piece
    )


def test_every_turn_of_a_longer_conversation_is_written_in_one_row(tokenizer):
    conversation = Conversation((said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")))
    (example,) = encode([conversation], tokenizer)
    text = [t for t, written in zip(example.token_ids, example.is_written, strict=True) if written]
    assert tokenizer.decode(text) == "b<|end|>d<|end|>"
    assert (
        tokenizer.decode(example.token_ids)
        == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>d<|end|>"
    )


def test_a_template_that_drops_earlier_thoughts_gives_a_row_for_each_form(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = (
        said("user", "a"),
        said("assistant", "<think>t</think>b"),
        said("user", "c"),
        said("assistant", "<think>u</think>d"),
    )
    first, second = encode([Conversation(turns)], tokenizer)
    assert tokenizer.decode(first.token_ids) == "<|user|>a<|end|><|assistant|><think>t</think>b<|end|>"
    written = [t for t, w in zip(second.token_ids, second.is_written, strict=True) if w]
    assert tokenizer.decode(written) == "<think>u</think>d<|end|>"
    assert "t</think>" not in tokenizer.decode(second.token_ids)


def test_nothing_behind_the_end_token_counts_as_written(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (example,) = encode([Conversation((said("user", "a"), said("assistant", "b")))], tokenizer)
    written = [t for t, w in zip(example.token_ids, example.is_written, strict=True) if w]
    assert tokenizer.decode(written) == "b<|end|>"


def test_a_template_that_changes_tool_output_is_refused(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(ValueError, match="must keep tool output as it is"):
        encode([Conversation((said("user", "a"), said("assistant", "b", " r ", "c")))], tokenizer)


def test_conversations_of_a_file_are_read_with_tool_output_told_apart(tmp_path):
    answer = "<python> 1+1 </python> <result>\n2\n</result><answer> 2 </answer>"
    messages = [{"role": "user", "content": "1+1 <result>x</result>"}, {"role": "assistant", "content": answer}]
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": messages})
    (conversation,) = JsonlConversations(path).load("train")
    assert [m.content for m in conversation.messages] == [m["content"] for m in messages]
    assert [(s.text, s.is_generated) for s in conversation.messages[1].segments] == [
        ("<python> 1+1 </python>", True),
        (" <result>\n2\n</result>", False),
        ("<answer> 2 </answer>", True),
    ]
    assert JsonlConversations(path).load("validation") == []
    (whole,) = JsonlConversations(path, tool_output="").load("train")
    assert whole.messages[1].segments == (Segment(answer, True),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl:2 must be a JSON object, got '\{'"),
        ("[]", "a.jsonl:2 must have `messages`"),
        ('{"messages": [{"role": "user"}]}', "a.jsonl:2 must have `messages`"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "a.jsonl:2 must have a message with the role `assistant`"),
    ],
)
def test_a_line_that_is_no_conversation_is_refused_with_its_place(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n' + line)
    with pytest.raises(ValueError, match=message):
        JsonlConversations(str(path)).load("train")


def test_a_missing_file_an_empty_file_and_a_bad_pattern_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train must be a file of conversations, got 'nowhere\.jsonl'"):
        JsonlConversations("nowhere.jsonl").load("train")
    path = write_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="validation must be a file with one conversation at least, got none"):
        JsonlConversations("nowhere.jsonl", validation=path).load("validation")
    with pytest.raises(ValueError, match=r"tool_output must be a regular expression, got '\('"):
        JsonlConversations(path, tool_output="(")


def test_a_step_draws_rows_at_random_and_sorts_them_into_its_batches():
    lengths = [int(x) for x in torch.randint(1, 100, (50,), generator=torch.Generator().manual_seed(0))]
    sampler = LengthBucketSampler(lengths, batch_size=4, batches_per_step=3, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert first == list(sampler)
    for start in range(0, 50, 12):
        step = [lengths[row] for row in first[start : start + 12]]
        assert step == sorted(step)
    shuffled = list(LengthBucketSampler(lengths, batch_size=4, batches_per_step=1, seed=1))
    assert {*first[:12]} == {*shuffled[:12]}
    sampler.set_epoch(1)
    assert list(sampler) != first


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


def test_the_loss_is_the_mean_surprise_of_learned_tokens_each_row_alone(folder, tmp_path):
    module = SupervisedModule(str(folder), str(tmp_path))
    module.configure_model()
    rows, masks = [[5, 9, 7, 8], [6, 4]], [[0, 0, 1, 1], [0, 1]]
    token_ids = torch.tensor([rows[0], [*rows[1], 0, 0]])
    loss_mask = torch.tensor([masks[0], [*masks[1], 0, 0]], dtype=torch.bool)
    loss = module.training_step(SupervisedBatch(token_ids, loss_mask), 0)
    surprises = []
    model = module.policy.double()
    for row, mask in zip(rows, masks, strict=True):
        log_probs = F.log_softmax(model(input_ids=torch.tensor([row])).logits[0], -1)
        surprises += [-log_probs[t - 1, row[t]] for t in range(1, len(row)) if mask[t]]
    torch.testing.assert_close(loss.double(), sum(surprises) / 3)


def test_the_learning_rate_warms_up_and_falls_to_its_share(folder, tmp_path):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = SupervisedModule(str(folder), str(tmp_path / "out"), lr=1.0, warmup_steps=4, min_lr_share=0.2)
    fit(module, SupervisedDataModule(SOURCE, str(folder), batch_size=8), tmp_path, callbacks=[Watch()], max_steps=8)
    # After step n the rate is that of step n + 1: (n + 2) / 4 of the cosine 0.2 + 0.8 * (1 + cos(pi * n / 8)) / 2.
    assert rates[0] == pytest.approx(2 / 4 * (0.2 + 0.4 * (1 + 0.9238795)), rel=1e-5)
    assert rates[3] == pytest.approx(0.2 + 0.4, rel=1e-5)
    assert rates[-1] == pytest.approx(0.2, rel=1e-5)


def test_a_fit_from_nothing_lowers_the_loss_and_leaves_a_folder_that_loads(tmp_path):
    fresh, out = tmp_path / "fresh", tmp_path / "out"
    module = SupervisedModule(str(fresh), str(out), fresh=TINY, lr=1e-2, warmup_steps=2)
    data = SupervisedDataModule(SOURCE, str(fresh), loss_on="all", batch_size=8)
    trainer = fit(module, data, tmp_path, accumulate_grad_batches=2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == load_tokenizer(str(fresh)).chat_template
    for name, value in module.policy.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    start = torch.log(torch.tensor(float(len(tokenizer)))).item()
    assert trainer.callback_metrics["validation/loss"] < start - 0.1
    assert 0.0 < trainer.callback_metrics["validation/token_accuracy"] < 1.0


def test_the_seed_decides_the_trained_weights(folder, tmp_path):
    states = []
    for run in range(2):
        module = SupervisedModule(str(folder), str(tmp_path / str(run)), lr=1e-2)
        fit(module, SupervisedDataModule(SOURCE, str(folder), batch_size=8), tmp_path, max_steps=3)
        states.append(module.policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_user_policy_goes_on_from_its_own_weights(folder, tmp_path):
    module = SupervisedModule(str(folder), str(tmp_path))
    module.configure_model()
    torch.testing.assert_close(module.policy.state_dict(), AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "model.lr must be positive, got 0.0"),
        ({"warmup_steps": -1}, "model.warmup_steps must not be negative, got -1"),
        ({"min_lr_share": 2.0}, r"model.min_lr_share must lie in \[0, 1\], got 2.0"),
    ],
)
def test_training_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SupervisedModule("policy", "out", **options)


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


def test_a_world_of_another_seed_is_another_source():
    other = WorldConversations(WorldDemonstrations(WorldProblems(world=World(seed=1), num_train=8)))
    with pytest.raises(ValueError, match="search must answer"):
        other.load("train")
