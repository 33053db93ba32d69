"""One optimizer step, against the same step written by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from appo.core.batch import TrajectoryBatch
from appo.core.collate import make_batch
from appo.losses import ClippedLoss, Loss, ProceduralLoss
from appo.policy.loading import load_policy
from appo.policy.lora import LoRA
from appo.policy.packing import SequenceForward
from appo.training.module import APPOModule


@pytest.fixture
def policy_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=31, **sizes)).save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


def train_batch() -> TrajectoryBatch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 4, 7, 5])
    mask = (torch.arange(9) < lengths[:, None]) & (torch.arange(9) > 1)
    zeros = torch.zeros(4, 9)
    return make_batch(
        token_ids=torch.randint(0, 31, (4, 9), generator=generator) * (torch.arange(9) < lengths[:, None]),
        lengths=lengths,
        response_mask=mask,
        behavior_log_probs=zeros,
        old_log_probs=zeros,
        advantages=torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None] * mask,
    )


PLAIN = ClippedLoss(behavior_correction="off", clip_low=0.99, clip_high=1e9)


def step(
    tmp_path, policy_folder: str, batch: TrajectoryBatch, loss: Loss = PLAIN, callbacks=None, **options
) -> APPOModule:
    """A module after one optimizer step of plain gradient descent."""
    module = APPOModule(
        policy_folder,
        loss,
        **{"optimizer": partial(torch.optim.SGD, lr=0.1), **options},
    )
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return module


def log_probs(model, batch: TrajectoryBatch) -> torch.Tensor:
    """By the definition, on whole padded rows."""
    log_softmax = model(batch.token_ids).logits.log_softmax(-1)
    shifted = log_softmax[:, :-1].gather(2, batch.token_ids[:, 1:, None])[..., 0]
    return torch.cat([torch.zeros(len(batch), 1), shifted], dim=1)


@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_a_step_equals_the_one_written_by_hand_whatever_the_micro_batches(tmp_path, policy_folder, max_tokens):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    batch = train_batch()
    batch = replace(batch, old_log_probs=log_probs(model, batch).detach() * batch.response_mask)
    mask = batch.response_mask
    ratio = (log_probs(model, batch) - batch.old_log_probs).exp()
    loss = -(ratio * batch.advantages)[mask].sum() / mask.sum()
    loss.backward()
    module = step(tmp_path, policy_folder, batch, max_tokens_per_microbatch=max_tokens, max_grad_norm=0.0)
    for (name, parameter), stepped in zip(model.named_parameters(), module.policy.parameters(), strict=True):
        torch.testing.assert_close(stepped, parameter - 0.1 * parameter.grad, msg=lambda text, n=name: f"{n}: {text}")
    assert module.policy_version == 1


def ragged_batch(num_rows: int) -> TrajectoryBatch:
    """Rows of unlike length with tool output in the middle, sampled by a policy that is not the one to be trained."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(num_rows) % 6 + 4
    mask = (torch.arange(9) < lengths[:, None]) & (torch.arange(9) > 1) & (torch.arange(9) != 4)
    noise = torch.randn(2, num_rows, 9, generator=generator) * mask
    return make_batch(
        token_ids=torch.randint(0, 31, (num_rows, 9), generator=generator),
        lengths=lengths,
        response_mask=mask,
        behavior_log_probs=noise[0].abs().neg(),
        advantages=noise[1],
    )


def test_the_step_does_not_depend_on_how_it_is_cut(tmp_path, policy_folder):
    batch = ragged_batch(14)
    weights = []
    for max_tokens, count in ((1000, 1), (50, 2), (16, 7)):
        assert len(batch.micro_batches(max_tokens)) == count
        module = step(
            tmp_path, policy_folder, batch, ProceduralLoss(entropy_coef=0.1),
            max_tokens_per_microbatch=max_tokens, max_grad_norm=0.0,
        )  # fmt: skip
        weights.append(dict(module.policy.named_parameters()))
    start = dict(AutoModelForCausalLM.from_pretrained(policy_folder).named_parameters())
    for name, whole in weights[0].items():
        assert not torch.equal(whole, start[name])
        for cut in weights[1:]:
            torch.testing.assert_close(cut[name] - start[name], whole - start[name], atol=1e-7, rtol=1e-4, msg=name)


def tree_batch() -> TrajectoryBatch:
    """Three roots of a prompt of 20 tokens, a branch off each middle, and another prompt."""
    generator = torch.Generator().manual_seed(2)
    prompt, *roots = (torch.randint(3, 31, (length,), generator=generator) for length in (20, 36, 30, 40))
    roots = [torch.cat([prompt, root]) for root in roots]
    branches = [torch.cat([root[:38], torch.randint(3, 31, (17,), generator=generator)]) for root in roots]
    rows = [*roots, *branches, torch.randint(3, 31, (45,), generator=generator)]
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = pad_sequence(rows, batch_first=True)
    positions = torch.arange(token_ids.shape[1])
    mask = (positions < lengths[:, None]) & (positions >= 20)
    noise = torch.randn(2, *mask.shape, generator=generator) * mask
    return make_batch(token_ids, lengths, mask, behavior_log_probs=noise[0].abs().neg(), advantages=noise[1])


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_a_step_over_trees_equals_one_over_flat_rows_however_they_are_cut(tmp_path, policy_folder, monkeypatch, lora):
    batch, changes = tree_batch(), []
    cuts = [(1000, True, 1), (120, True, 3), (70, True, 6), (1000, False, 1)]
    for max_tokens, shares, count in cuts:
        assert len(batch.micro_batches(max_tokens, shares)) == count
        monkeypatch.setattr(SequenceForward, "_attend_to_prefixes", lambda self, model, s=shares: "" if s else "off")
        L.seed_everything(0, verbose=False)
        module = step(
            tmp_path, policy_folder, batch, ProceduralLoss(entropy_coef=0.1),
            max_tokens_per_microbatch=max_tokens, max_grad_norm=0.0, lora=lora,
        )  # fmt: skip
        assert module._log_probs.shares == shares
        work = module.pop_work()
        assert (work.num_tokens, work.num_shared) == ((222, 154) if shares else (376, 0))
        changes.append({name: parameter.detach().clone() for name, parameter in module.trained().items()})
    for name, flat in changes[-1].items():
        for tree in changes[:-1]:
            torch.testing.assert_close(tree[name], flat, atol=1e-7, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_old_log_probs_that_nobody_computed_are_those_of_the_step_itself(tmp_path, policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    batch = ragged_batch(5)
    old = log_probs(model, batch).detach() * batch.response_mask
    modules = [
        step(tmp_path, policy_folder, each, ClippedLoss())
        for each in (replace(batch, old_log_probs=old, evaluated_by=torch.zeros(5, dtype=torch.int64)), batch)
    ]
    for with_old, without in zip(*(module.policy.parameters() for module in modules), strict=True):
        torch.testing.assert_close(without, with_old)


def test_an_evaluation_fills_in_what_is_missing_by_the_policy_as_it_is(tmp_path, policy_folder):
    module = step(tmp_path, policy_folder, ragged_batch(5), ClippedLoss(), max_tokens_per_microbatch=12)
    batch = ragged_batch(6)
    known = module.evaluate(batch.select(torch.tensor([3])))
    batch.take_evaluation_(torch.tensor([3]), replace(known, old_log_probs=-9.0 * known.response_mask))
    evaluated = module.evaluate(batch)
    expected = log_probs(module.policy, batch).detach() * batch.response_mask
    expected[3] = -9.0 * batch.response_mask[3]
    torch.testing.assert_close(evaluated.old_log_probs, expected)
    assert ((evaluated.entropies > 0) == batch.response_mask).all()
    assert evaluated.evaluated_by.tolist() == [1] * 6


def test_a_step_logs_how_far_its_policy_is_from_the_one_that_sampled(tmp_path, policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    batch = ragged_batch(5)
    module = step(tmp_path, policy_folder, batch, ClippedLoss(), max_tokens_per_microbatch=12)
    ratio = (log_probs(model, batch).detach() - batch.behavior_log_probs)[batch.response_mask]
    logged = module.trainer.callback_metrics["train/sampling_log_ratio"]
    torch.testing.assert_close(logged, ratio.mean())


def test_the_probability_of_rewarded_tokens_rises(tmp_path, policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    batch = train_batch()
    before = log_probs(model, batch).detach()
    batch = replace(batch, old_log_probs=before * batch.response_mask)
    module = step(tmp_path, policy_folder, batch)
    change = (log_probs(module.policy, batch) - before) * batch.response_mask
    assert change[0].sum() > 0
    assert change[1].sum() < 0


def test_gradients_are_scaled_down_to_their_greatest_norm(tmp_path, policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    module = step(tmp_path, policy_folder, train_batch(), max_grad_norm=0.01)
    moved = torch.cat(
        [(b - a).flatten() for a, b in zip(model.parameters(), module.policy.parameters(), strict=True)]
    ).norm()
    assert moved.item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_step_without_signal_changes_nothing(tmp_path, policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    module = step(tmp_path, policy_folder, replace(train_batch(), advantages=torch.zeros(4, 9)))
    assert module.policy_version == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), module.policy.parameters(), strict=True))


def test_gradients_that_are_not_finite_skip_the_step(tmp_path, policy_folder, caplog):
    batch = train_batch()
    batch = replace(batch, advantages=batch.advantages.masked_fill(batch.response_mask, float("inf")))
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    module = step(tmp_path, policy_folder, batch)
    assert "is skipped: the norm of its gradient" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), module.policy.parameters(), strict=True))


@pytest.mark.parametrize(("kl_coef", "num_references"), [(0.0, 0), (0.1, 1)])
def test_a_reference_of_weight_0_is_not_loaded(policy_folder, kl_coef, num_references, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "appo.training.module.load_policy",
        lambda *args, **options: loaded.append(args) or load_policy(*args, **options),
    )
    APPOModule(policy_folder, ClippedLoss(kl_coef=kl_coef)).configure_model()
    assert len(loaded) == 1 + num_references


@pytest.mark.parametrize(("attention", "chosen"), [(None, "sdpa"), ("eager", "eager")])
def test_the_attention_of_the_policy_can_be_chosen(policy_folder, attention, chosen):
    module = APPOModule(policy_folder, attention=attention)
    module.configure_model()
    assert module.policy.config._attn_implementation == chosen


@pytest.mark.slow
def test_a_compiled_decoder_trains_as_the_plain_one_does_and_keeps_its_names(tmp_path, policy_folder):
    modules = [
        step(tmp_path, policy_folder, ragged_batch(5), max_tokens_per_microbatch=12, compile=is_compiled)
        for is_compiled in (False, True)
    ]
    plain, compiled = (dict(module.named_weights()) for module in modules)
    torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=1e-5)
    assert all(layer._compiled_call_impl is not None for layer in modules[1].policy.get_decoder().layers)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_an_optimizer_of_fused_kernels_makes_the_same_step(policy_folder, tmp_path, lora):
    weights = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        optimizer = partial(torch.optim.AdamW, lr=0.01, fused=is_fused)
        module = step(tmp_path, policy_folder, ragged_batch(5), optimizer=optimizer, lora=lora)
        weights.append(dict(module.named_weights()))
    torch.testing.assert_close(weights[1], weights[0])


NOISY = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32,
        "layerdrop": 0.5,
    },
    "falcon": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.5,
        "attention_dropout": 0.5,
    },
    "mixtral": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "router_jitter_noise": 0.5, "attention_dropout": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", NOISY)
def test_a_policy_is_trained_without_the_noise_of_its_config(tmp_path, family):
    config = AutoConfig.for_model(family, vocab_size=31, bos_token_id=1, eos_token_id=2, **NOISY[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "policy")
    module = APPOModule(str(tmp_path / "policy"))
    module.trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    module.configure_model()
    token_ids = torch.arange(20)[None]
    in_training = module.policy(token_ids).logits
    torch.testing.assert_close(in_training, module.policy.eval()(token_ids).logits)
    assert module.policy.config.to_dict() == AutoModelForCausalLM.from_pretrained(tmp_path / "policy").config.to_dict()
