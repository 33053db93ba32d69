"""A step on packed conversations is a step on each of them alone."""

from __future__ import annotations

import copy
import logging

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from appo.policy.lora import Adapter, LoRA
from appo.sft import SupervisedDataModule, SupervisedModule
from appo.sft.encoding import Example
from tests.policy.double_norms import keep_double
from tests.sft.small_source import SOURCE


def conversations():
    """Of 4 to 150 tokens: eight with one system prompt, eight with another or with none."""
    generator = torch.Generator().manual_seed(0)

    def draw(number):
        return torch.randint(5, 100, (number,), generator=generator).tolist()

    systems = [draw(40)] * 8 + [draw(30)] * 4 + [[]] * 4
    rows = []
    for number, system in enumerate(systems):
        own = draw(4 + number * 7)
        is_written = [False] * (len(system) + 2) + [i % 5 < 3 for i in range(len(own) - 2)]
        rows.append(Example((*system, *own), tuple(is_written)))
    return rows


class Adapted(SupervisedModule):
    """Trains an adapter, which `appo sft` has no option for."""

    def configure_model(self):
        super().configure_model()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.adapter = Adapter(self.policy, LoRA(rank=2))
            for name, parameter in self.policy.named_parameters():
                if "lora_B" in name:  # zero at first, where nothing would flow into the other half
                    torch.nn.init.normal_(parameter, std=0.02)


def steps(folder, tmp_path, module_class=SupervisedModule, precision="32-true", **options):
    """The gradient of a first optimizer step, and the model before it."""
    found = {}

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            found["model"] = copy.deepcopy(module.policy)
            if module.policy.dtype == torch.float64:
                keep_double(module.policy)
                keep_double(found["model"])

        def on_before_optimizer_step(self, trainer, module, optimizer):
            found["gradient"] = {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.requires_grad}

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=4,
        precision=precision,
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = SupervisedDataModule(SOURCE, str(folder), batch_size=4)
    data.examples = {"train": conversations(), "validation": []}
    trainer.fit(module_class(str(folder), str(tmp_path / "out"), **options), data)
    return found["gradient"], found["model"]


def naive_gradient(model):
    """Of the mean surprise of the tokens that are learned, a row at a time."""
    rows = conversations()
    total = sum(sum(row.is_written[1:]) for row in rows)
    model.zero_grad()
    for row in rows:
        ids, mask = torch.tensor([row.token_ids]), torch.tensor(row.is_written)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        (F.cross_entropy(logits[mask[1:]], ids[0, 1:][mask[1:]], reduction="sum") / total).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def distance(ours, right):
    assert ours.keys() == right.keys()
    difference = torch.stack([(ours[name] - right[name]).double().norm() for name in right]).norm()
    return float(difference / torch.stack([value.double().norm() for value in right.values()]).norm())


@pytest.mark.parametrize(
    ("precision", "tolerance", "options"),
    [
        ("32-true", 1e-10, {"dtype": "float64"}),
        ("32-true", 1e-5, {}),
        ("32-true", 1e-10, {"dtype": "float64", "gradient_checkpointing": True}),
        ("32-true", 1e-10, {"dtype": "float64", "module_class": Adapted}),
        ("bf16-mixed", 0.03, {}),
    ],
)
def test_the_gradient_is_that_of_each_conversation_alone(folder, tmp_path, caplog, precision, tolerance, options):
    with caplog.at_level(logging.WARNING):
        gradient, model = steps(folder, tmp_path, precision=precision, **options)
    assert "are padded" not in caplog.text
    assert "do not share" not in caplog.text
    model.set_attn_implementation("sdpa")
    assert distance(gradient, naive_gradient(model.eval())) < tolerance
