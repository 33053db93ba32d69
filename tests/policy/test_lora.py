"""Adapters: what is trained, what engines and folders get, and what is refused."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import lightning as L
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from appo.commands import cli
from appo.functional import linear_log_probs
from appo.losses import ClippedLoss
from appo.policy.loading import load_policy
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.lora import Adapter, LoRA, own_name
from appo.policy.weight_layout import WeightLayout
from appo.training.module import APPOModule
from tests.small_run import run
from tests.training.callbacks.test_fit import history, weights
from tests.training.test_module import log_probs, ragged_batch, step

EVEN = "--rollout.reward=tests.small_run.EvenTokens"
RANK_4 = ["--model.lora.rank", "4", "--model.optimizer.lr=0.02", EVEN]


def tiny(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=31, **sizes, **changes))


@pytest.fixture
def llama(tmp_path) -> str:
    tiny().save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


def stir(adapter: Adapter) -> Adapter:
    """The adapter with a product that changes what the policy says; fresh ones are 0."""
    torch.manual_seed(1)
    for name, parameter in adapter.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [(), ("q_proj", "mlp.down_proj")])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_are_those_that_peft_merges(dtype, targets, tied):
    model = tiny(tie_word_embeddings=tied, attention_bias=True).to(dtype)
    layout = WeightLayout.of(model)
    adapter = stir(Adapter(model, LoRA(rank=4, target_modules=targets)))
    streamed = dict(layout.checked(adapter.named_weights()))
    expected = deepcopy(adapter.peft).merge_and_unload()
    assert streamed.keys() == layout.shapes.keys()
    for name, parameter in expected.named_parameters(remove_duplicate=False):
        assert streamed[name].dtype == dtype
        torch.testing.assert_close(streamed[name], parameter.detach(), msg=name)


def test_a_layer_is_merged_when_its_turn_comes():
    adapter = stir(Adapter(tiny(), LoRA()))
    stream = adapter.named_weights()
    before = dict(zip(range(2), stream, strict=False))
    for name, parameter in adapter.model.named_parameters():
        if "layers.1.mlp.down_proj.lora_B" in name:
            parameter.data.zero_()
    after = dict(stream)
    assert len(before) == 2
    base = dict(adapter.model.named_parameters())["model.layers.1.mlp.down_proj.base_layer.weight"]
    assert torch.equal(after["model.layers.1.mlp.down_proj.weight"], base)


def test_merged_weights_are_rounded_once():
    model = tiny().to(torch.bfloat16)
    adapter = stir(Adapter(model, LoRA(rank=4)))
    own = {own_name(name): parameter.detach().clone() for name, parameter in model.named_parameters()}
    layers = dict(model.named_modules())
    for name, weight in adapter.named_weights(torch.float32):
        expected = own[name].float()
        if "_proj" in name:
            layer = layers[name.removesuffix(".weight")]
            expected += layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_policy_that_is_merged_in_place_shares_its_memory_with_the_merged_copy(dtype):
    model = tiny(tie_word_embeddings=True)
    adapter = stir(Adapter(model, LoRA(rank=4)))
    expected = adapter.merged(dtype=dtype).state_dict()
    merged = adapter.merged(dtype=dtype, in_place=True)
    own = {own_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.data_ptr() == own[name].data_ptr(), name
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_the_adapter_is_on_every_linear_layer_but_the_head_and_nothing_else_is_trained():
    model = tiny()
    Adapter(model, LoRA(rank=4))
    trained = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    layers = {name for name, layer in tiny().named_modules() if isinstance(layer, torch.nn.Linear)}
    assert trained == layers - {"lm_head"}


MIXTURES = {
    # The first layer is dense: its projections have the names that those of experts once had.
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0], "head_dim": 8,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("targets", [(), ("o_proj",)])
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_of_one_tensor_have_no_adapter_and_all_linear_layers_have(family, targets):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        family, vocab_size=31, num_key_value_heads=2, tie_word_embeddings=False, **sizes, **MIXTURES[family]
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    linear = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)} - {"lm_head"}
    layout, token_ids = WeightLayout.of(model), torch.arange(9)[None]
    before = model(token_ids).logits
    adapter = Adapter(model, LoRA(rank=2, target_modules=targets))
    assert model.config.model_type == family
    assert {name.partition(".lora_")[0] for name in adapter.trained()} == {
        name for name in linear if not targets or name.endswith(targets)
    }
    streamed = dict(layout.checked(stir(adapter).named_weights()))
    assert streamed.keys() == layout.shapes.keys()
    assert (model(token_ids).logits - before).abs().max() > 1e-3
    plain = AutoModelForCausalLM.from_config(config).eval()
    plain.load_state_dict(dict(model.named_buffers()) | streamed, strict=False)
    torch.testing.assert_close(plain(token_ids).logits, model(token_ids).logits, atol=1e-5, rtol=1e-5)


def test_the_merged_copy_says_what_the_policy_says_and_saves_as_a_model(tmp_path):
    model = tiny(tie_word_embeddings=True).eval()
    adapter = stir(Adapter(model, LoRA()))
    token_ids = torch.randint(0, 31, (2, 9))
    adapter.merged().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits, atol=1e-5, rtol=1e-5)


def test_with_the_adapter_off_the_policy_is_the_base():
    base, model = tiny().eval(), tiny().eval()
    adapter = stir(Adapter(model, LoRA()))
    token_ids = torch.randint(0, 31, (2, 9))
    mask = torch.arange(9).expand(2, 9) > 3
    evaluate = PolicyLogProbs(model)
    expected = PolicyLogProbs(base)(token_ids, mask)
    with adapter.off():
        torch.testing.assert_close(evaluate(token_ids, mask), expected)
    assert (evaluate(token_ids, mask)[0] - expected[0]).abs().max() > 0.01


@pytest.mark.parametrize(("reference", "num_loaded"), [(None, 1), ("same", 1), ("other", 2)])
def test_the_base_is_the_reference_unless_another_is_named(llama, tmp_path, monkeypatch, reference, num_loaded):
    tiny().save_pretrained(tmp_path / "other")
    folder = {None: None, "same": llama, "other": str(tmp_path / "other")}[reference]
    loaded = []
    monkeypatch.setattr("appo.training.module.load_policy", lambda *a, **o: loaded.append(a) or load_policy(*a, **o))
    APPOModule(llama, ClippedLoss(kl_coef=0.1), reference=folder, lora=LoRA()).configure_model()
    assert len(loaded) == num_loaded


@pytest.mark.parametrize("lora", [None, LoRA()])
def test_of_a_reference_only_log_probs_are_computed(llama, tmp_path, monkeypatch, lora):
    asked = []
    monkeypatch.setattr(
        "appo.policy.lm_head.linear_log_probs",
        lambda *args, **options: asked.append(options["with_entropies"]) or linear_log_probs(*args, **options),
    )
    module = APPOModule(llama, ClippedLoss(kl_coef=0.1), lora=lora)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    module.configure_model()
    batch = ragged_batch(5)
    found = module.reference_log_probs(batch)[batch.response_mask]
    expected = log_probs(load_policy(llama, "float32"), batch)[batch.response_mask]
    torch.testing.assert_close(found, expected.detach())
    assert asked == [False]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_hidden_states_pass_the_head_in_chunks(dropout):
    model = tiny()
    stir(Adapter(model, LoRA(dropout=dropout)))
    assert PolicyLogProbs(model.train())._head is not None


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_a_step_changes_the_adapter_as_written_by_hand_and_leaves_the_weights(tmp_path, llama, options):
    batch = ragged_batch(5)
    model = load_policy(llama, options.get("dtype", "float32"))
    torch.manual_seed(3)
    Adapter(model, LoRA(rank=4))
    mask = batch.response_mask
    live = log_probs(model, batch)
    (-((live - live.detach()).exp() * batch.advantages)[mask].sum() / mask.sum()).backward()
    torch.manual_seed(3)
    module = step(
        tmp_path, llama, batch, ClippedLoss(behavior_correction="off", clip_low=0.99, clip_high=1e9),
        lora=LoRA(rank=4), max_grad_norm=0.0, **options,
    )  # fmt: skip
    tolerance = 0.05 if "dtype" in options else 1e-4
    num_trained = 0
    for (name, parameter), stepped in zip(model.named_parameters(), module.policy.parameters(), strict=True):
        if parameter.requires_grad:
            num_trained += 1
            assert stepped.dtype == torch.float32
            assert (stepped - parameter + 0.1 * parameter.grad).norm() <= tolerance * 0.1 * parameter.grad.norm(), name
        else:
            assert torch.equal(stepped, parameter), name
    assert num_trained == 2 * 7 * 2
    assert sum(p.grad.norm() > 0 for p in model.parameters() if p.grad is not None) == 2 * 7  # A has none at B = 0


def test_a_run_trains_the_adapter_and_exports_the_merged_policy_with_the_adapter_beside_it(adapted_run, policy_folder):
    folder = adapted_run
    rows = history(folder)
    assert all(row["train/grad_norm"] > 0 and row["rollout/probe_max"] < 1e-4 for row in rows)
    assert rows[0]["train/kl"] != rows[1]["train/kl"]
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert all(".lora_" in name for name in saved["state_dict"])
    assert len(saved["state_dict"]) == len(saved["optimizer_states"][0]["state"]) == 2 * 7
    base, merged = weights(policy_folder), weights(folder / "policy")
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "_proj" in name and name.endswith("weight")}
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    again = peft.PeftModel.from_pretrained(model, folder / "policy/adapter").merge_and_unload()
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], msg=name)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_adapter_of_one_that_was_never_stopped(tmp_path, policy_folder):
    whole = run("fit", tmp_path / "whole", policy_folder, "--trainer.max_epochs=2", *RANK_4)
    stopped = tmp_path / "stopped"
    run("fit", stopped, policy_folder, "--trainer.max_epochs=2", "--rollout.stop_after_tokens=1", *RANK_4)
    run("fit", stopped, policy_folder, "--trainer.max_epochs=2", "--ckpt_path=last", *RANK_4)
    assert [row["epoch"] for row in history(stopped)] == [1]
    ends = [torch.load(each / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for each in (whole, stopped)]
    torch.testing.assert_close(*ends)
    for other, message in (
        ('--model.lora.target_modules=["q_proj"]', r"must hold the adapter that model\.lora describes"),
        ("--model.lora.rank=8", r"the shapes that model\.lora describes, got \[4, \d+\] for .* instead of \[8, \d+\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run("fit", stopped, policy_folder, "--trainer.max_epochs=3", "--ckpt_path=last", *RANK_4, other)


def test_options_of_the_adapter_may_stand_in_a_file(tmp_path, policy_folder):
    overlay = tmp_path / "lora.yaml"
    overlay.write_text("model: {lora: {rank: 2, target_modules: [q_proj, v_proj]}}\n")
    folder = run(
        "fit", tmp_path, policy_folder, "--config", str(overlay), "--model.lora.alpha=6", "--trainer.max_epochs=1", EVEN
    )
    config = json.loads((folder / "policy/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (2, 6, ["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rank=0", "model.lora.rank must be at least 1, got 0"),
        ("dropout=1.0", r"model.lora.dropout must lie in \[0, 1\), got 1.0"),
        ("quantize=nf4", "model.lora.quantize = nf4 must have "),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_anything_is_loaded(policy_folder, option, message, capsys):
    if "quantize" in option and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        cli.run(["fit", "--config", "configs/appo.yaml", f"--model.policy={policy_folder}", f"--model.lora.{option}"])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("target", "message"), [("qq_proj", "must name linear layers of the policy"), ("lm_head", "shares its weight")]
)
def test_targets_that_cannot_be_met_are_refused(target, message):
    with pytest.raises(ValueError, match=f"model.lora.target_modules .*{message}.*, got '{target}'"):
        Adapter(tiny(tie_word_embeddings=True), LoRA(target_modules=(target,)))


def test_an_untied_head_may_have_an_adapter_and_its_logits_are_its_own(tmp_path, caplog):
    model = tiny(tie_word_embeddings=False).eval()
    adapter = stir(Adapter(model, LoRA(target_modules=("lm_head",))))
    token_ids = torch.randint(0, 31, (1, 6))
    mask = torch.arange(6)[None] > 1
    adapter.merged().save_pretrained(tmp_path)
    log_p = load_policy(str(tmp_path)).eval()(token_ids).logits.log_softmax(-1)
    expected = log_p[:, :-1].gather(2, token_ids[:, 1:, None])[0, :, 0]
    torch.testing.assert_close(PolicyLogProbs(model)(token_ids, mask)[0][0, 2:], expected[1:])
    assert "is not one linear layer" in caplog.text
