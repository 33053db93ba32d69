"""Checkpoints of runs that trained an adapter: merged and alone, against what the runs wrote at their end."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from appo.commands import cli
from appo.commands.export import export_policy
from appo.policy.lora import Adapter, LoRA
from tests.small_run import run

peft = pytest.importorskip("peft")

MERGED = "model.safetensors"
ADAPTER = "adapter_model.safetensors"


def assert_same_weights(file: Path, expected: Path) -> None:
    ours, theirs = load_file(file), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def changed(folder: Path, adapted_run: Path, **model: object) -> Path:
    """A copy of the run's checkpoint beside a config that differs from the run's."""
    (config,) = adapted_run.glob("csv/version_*/config.yaml")
    settings = OmegaConf.load(config)
    OmegaConf.update(settings, "model", model)
    OmegaConf.save(settings, folder / "config.yaml")
    return Path(shutil.copy(adapted_run / "checkpoints/last.ckpt", folder / "last.ckpt"))


def test_a_checkpoint_becomes_the_merged_folder_that_the_run_wrote_at_its_end(adapted_run, policy_folder, tmp_path):
    before = (policy_folder / MERGED).read_bytes()
    cli.run(["export", "--ckpt", str(adapted_run / "checkpoints/last.ckpt"), "--out", str(tmp_path / "out")])
    # Weights are merged in the memory that the policy's file is mapped to.
    assert (policy_folder / MERGED).read_bytes() == before
    assert_same_weights(tmp_path / "out" / MERGED, adapted_run / "policy" / MERGED)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_text() == (adapted_run / "policy" / name).read_text(), name
    with safe_open(tmp_path / "out" / MERGED, "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - the file is no mapping
    name = "model.layers.0.mlp.up_proj.weight"
    base, merged = (
        AutoModelForCausalLM.from_pretrained(f).state_dict()[name] for f in (policy_folder, tmp_path / "out")
    )
    assert (base - merged).abs().max() > 1e-3


def test_the_adapter_alone_is_the_folder_of_peft_that_the_run_wrote_at_its_end(adapted_run, policy_folder, tmp_path):
    ckpt = str(adapted_run / "checkpoints/last.ckpt")
    cli.run(["export", "--ckpt", ckpt, "--out", str(tmp_path / "out"), "--form=adapter"])
    assert_same_weights(tmp_path / "out" / ADAPTER, adapted_run / "policy/adapter" / ADAPTER)
    ours, theirs = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path / "out", adapted_run / "policy/adapter")
    )
    for config in (ours, theirs):
        config["target_modules"] = set(config["target_modules"])  # peft's order depends on the process
    assert ours == theirs
    assert ours["base_model_name_or_path"] == str(policy_folder)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_folder), tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(adapted_run / "policy").state_dict()
    for name, tensor in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(policy_folder).chat_template


def test_a_policy_in_bfloat16_is_merged_as_the_run_merged_it(policy_folder, tmp_path):
    folder = run(
        "fit", tmp_path / "run", policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--model.lora.rank=4", "--model.optimizer.lr=0.02", "--model.dtype=bfloat16",
    )  # fmt: skip
    export_policy(folder / "checkpoints/last.ckpt", tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / MERGED).values()} == {torch.bfloat16}
    assert_same_weights(tmp_path / "out" / MERGED, folder / "policy" / MERGED)
    export_policy(folder / "checkpoints/last.ckpt", tmp_path / "alone", form="adapter")
    assert_same_weights(tmp_path / "alone" / ADAPTER, folder / "policy/adapter" / ADAPTER)
    assert {tensor.dtype for tensor in load_file(tmp_path / "alone" / ADAPTER).values()} == {torch.float32}
    # What is asked for in float32 has not been rounded to bfloat16 before.
    export_policy(folder / "checkpoints/last.ckpt", tmp_path / "fine", dtype="float32")
    fine, coarse = (load_file(tmp_path / name / MERGED) for name in ("fine", "out"))
    assert all(torch.equal(fine[name].bfloat16(), tensor) for name, tensor in coarse.items())
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(fine[name], coarse[name].float())


def test_weights_are_rounded_after_they_are_merged(adapted_run, tmp_path):
    ckpt = adapted_run / "checkpoints/last.ckpt"
    export_policy(ckpt, tmp_path / "out", dtype="bfloat16")
    export_policy(ckpt, tmp_path / "alone", dtype="bfloat16", form="adapter")
    for file, folder in ((tmp_path / "out" / MERGED, "policy"), (tmp_path / "alone" / ADAPTER, "policy/adapter")):
        expected = load_file(adapted_run / folder / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, expected[name].bfloat16()), name
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_the_policys_own_weights_are_those_of_the_checkpoint_if_it_has_them(policy_folder, tmp_path, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=889, tie_word_embeddings=False, attention_bias=True, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    adapter = Adapter(model, LoRA(rank=2, alpha=6, target_modules=("q_proj", "lm_head")))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"policy.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    if kind == "file":
        torch.save({"state_dict": state}, tmp_path / "ckpt")
    else:
        dcp.save({"state_dict": state}, checkpoint_id=tmp_path / "ckpt")
    # The folder has no weights that fit: they are not looked at.
    shutil.copytree(policy_folder, tmp_path / "base")
    config.save_pretrained(tmp_path / "base")
    lora = {"rank": 2, "alpha": 6, "target_modules": ["q_proj", "lm_head"], "quantize": "nf4"}
    OmegaConf.save(
        {"model": {"policy": str(tmp_path / "base"), "dtype": "float32", "lora": lora}}, tmp_path / "config.yaml"
    )
    before = (tmp_path / "ckpt").read_bytes() if kind == "file" else None
    export_policy(tmp_path / "ckpt", tmp_path / "out")
    assert before is None or (tmp_path / "ckpt").read_bytes() == before
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    expected = adapter.peft.merge_and_unload().state_dict()
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(exported[name], tensor, msg=name)


def test_a_policy_that_has_moved_may_be_named(adapted_run, policy_folder, tmp_path):
    ckpt = changed(tmp_path, adapted_run, policy="/nowhere")
    with pytest.raises(FileNotFoundError, match=r"model\.policy must be .* got '/nowhere'"):
        export_policy(ckpt, tmp_path / "out")
    shutil.copytree(policy_folder, tmp_path / "moved")
    export_policy(ckpt, tmp_path / "out", policy=str(tmp_path / "moved"))
    assert_same_weights(tmp_path / "out" / MERGED, adapted_run / "policy" / MERGED)
    export_policy(ckpt, tmp_path / "alone", policy=str(tmp_path / "moved"), form="adapter")
    config = json.loads((tmp_path / "alone/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "moved")


def test_there_is_no_adapter_in_a_checkpoint_without_one(small_run, tmp_path):
    with pytest.raises(ValueError, match="form must be merged for a checkpoint without an adapter, got adapter for "):
        export_policy(small_run / "checkpoints/last.ckpt", tmp_path / "out", form="adapter")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_run_does_not_tell_the_adapters_options(adapted_run, policy_folder, tmp_path):
    (tmp_path / "sub/sub").mkdir(parents=True)
    ckpt = Path(shutil.copy(adapted_run / "checkpoints/last.ckpt", tmp_path / "sub/sub/last.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"ckpt must lie in its run's folder, .*: no config\.yaml of a run in"):
        export_policy(ckpt, tmp_path / "out", policy=str(policy_folder))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"lora": None}, r"model\.lora of .*config\.yaml must be that of a run with an adapter, got None"),
        ({"dtype": None}, r"model\.dtype of .*config\.yaml must be that of a run with an adapter, got None"),
        ({"lora": {"rank": 0}}, r"model\.lora of .* must be options .* model\.lora\.rank must be at least 1, got 0"),
        ({"lora": {"ranks": 4}}, r"model\.lora of .* must be options .* does not accept option 'ranks'"),
        (
            {"lora": {"rank": 8}},
            r"ckpt must have the adapter that model\.lora of .*config\.yaml describes, LoRA\(rank=8, .*"
            r"got one with .*lora_A\.default\.weight \[4, 64\] for \[8, 64\]",
        ),
        (
            {"lora": {"target_modules": ["q_proj"]}},
            r"describes, .*target_modules=\('q_proj',\).* got one with unknown .* and 9 more$",
        ),
        ({"lora": {"target_modules": ["query"]}}, r"model\.lora\.target_modules must name .* got 'query'"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_refused_before_anything_is_loaded(
    adapted_run, tmp_path, monkeypatch, model, message
):
    monkeypatch.delattr("appo.commands.export.adapted.load_policy")
    (config,) = adapted_run.glob("csv/version_*/config.yaml")
    if isinstance(lora := model.get("lora"), dict):
        model = {"lora": {**OmegaConf.load(config).model.lora, **lora}}
    ckpt = changed(tmp_path, adapted_run, **model)
    for form in ("merged", "adapter"):
        with pytest.raises(ValueError, match=message):
            export_policy(ckpt, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_quantized_policy_is_merged_on_a_gpu_and_written_anywhere(adapted_run, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.delattr("appo.commands.export.adapted.load_policy")
    ckpt = changed(tmp_path, adapted_run, lora={"rank": 4, "quantize": "nf4"})
    with pytest.raises(ValueError, match=r"model\.lora\.quantize = nf4 must have "):
        export_policy(ckpt, tmp_path / "out")
    export_policy(ckpt, tmp_path / "out", form="adapter")
    assert_same_weights(tmp_path / "out" / ADAPTER, adapted_run / "policy/adapter" / ADAPTER)


def test_peft_must_be_there(adapted_run, tmp_path, monkeypatch):
    monkeypatch.setattr("appo.core.extras.find_spec", lambda name: None)
    message = 'model.lora needs the package peft, which is not installed: pip install "appo[lora]"'
    with pytest.raises(ValueError, match=re.escape(message)):
        export_policy(adapted_run / "checkpoints/last.ckpt", tmp_path / "out", form="adapter")


def test_the_policys_own_weights_must_fit_the_architecture(policy_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    Adapter(model, LoRA(rank=4))
    state = {f"policy.{name}": tensor for name, tensor in model.state_dict().items() if "up_proj.base" not in name}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text("model: {dtype: float32, lora: {rank: 4}}\n")
    with pytest.raises(
        ValueError, match=r"weights of LlamaForCausalLM, got one without model\.layers\.0\.mlp\.up_proj\.w"
    ):
        export_policy(tmp_path / "last.ckpt", tmp_path / "out", policy=str(policy_folder))
