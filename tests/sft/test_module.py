from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from appo.policy.loading import load_tokenizer
from appo.sft import SupervisedBatch, SupervisedDataModule, SupervisedModule
from tests.sft.small_source import SOURCE, TINY


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


def test_the_loss_is_the_mean_surprise_of_learned_tokens_each_row_alone(folder, tmp_path):
    module = SupervisedModule(str(folder), str(tmp_path))
    module.configure_model()
    rows, masks = [[5, 9, 7, 8], [6, 4]], [[0, 0, 1, 1], [0, 1]]
    token_ids = torch.tensor([rows[0], [*rows[1], 0, 0]])
    loss_mask = torch.tensor([masks[0], [*masks[1], 0, 0]], dtype=torch.bool)
    loss = module.training_step(SupervisedBatch(token_ids, loss_mask, 3.0), 0)
    surprises = []
    model = copy.deepcopy(module.policy).double()
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
    assert 0.0 < trainer.callback_metrics["validation/entropy"] < start


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision(folder, tmp_path, precision):
    """A step of plain length in the direction of the gradient: the first one of AdamW does not tell."""
    norms = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]))

    module = SupervisedModule(str(folder), str(tmp_path / "out"))
    data = SupervisedDataModule(SOURCE, str(folder), batch_size=8)
    fit(module, data, tmp_path, precision=precision, gradient_clip_val=1e-3, callbacks=[Watch()], max_steps=2)
    assert norms[0] > 1e-3


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
