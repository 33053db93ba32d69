from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from appo.commands import cli
from appo.commands.export import export_policy
from appo.commands.export.run_config import policy_of_run
from tests import copied_processes
from tests.commands.export import sharded_run
from tests.distributed.whole_runs import environments


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def save_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A Lightning checkpoint, as far as its weights are concerned."""
    torch.save({"state_dict": {f"policy.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def test_a_checkpoint_becomes_the_folder_that_the_run_wrote_at_its_end(small_run, tmp_path, capsys):
    cli.run(["export", "--ckpt", str(small_run / "checkpoints/last.ckpt"), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    expected = weights(small_run / "policy")
    assert weights(tmp_path / "out").keys() == expected.keys()
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name]), name
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_text() == (small_run / "policy" / name).read_text(), name
    # The two are not those that the run began with.
    assert not torch.equal(
        expected["lm_head.weight"], weights(Path(policy_of_run(small_run / "csv/x")))["lm_head.weight"]
    )


def test_tied_weights_are_written_once_and_are_tied_when_loaded(small_run, tmp_path):
    export_policy(small_run / "checkpoints/last.ckpt", tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 - the file is no mapping
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_tokenizer_says_the_same_ids(small_run, policy_folder, tmp_path):
    export_policy(small_run / "checkpoints/last.ckpt", tmp_path / "out")
    messages = [{"role": "user", "content": "What is 37 plus 48? <search>Ana</search>"}]
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (policy_folder, tmp_path / "out"))
    assert after.apply_chat_template(messages)["input_ids"] == before.apply_chat_template(messages)["input_ids"]


def test_weights_keep_their_type_or_take_another(small_run, policy_folder, tmp_path):
    state = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.bfloat16).state_dict()
    ckpt = save_checkpoint(tmp_path / "last.ckpt", state)
    export_policy(ckpt, tmp_path / "kept", policy=str(policy_folder))
    export_policy(ckpt, tmp_path / "cast", policy=str(policy_folder), dtype="float32")
    for name, dtype in (("kept", torch.bfloat16), ("cast", torch.float32)):
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == str(dtype).partition(".")[2]
        for key, tensor in load_file(tmp_path / name / "model.safetensors").items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, state[key].to(dtype)), key


@pytest.mark.distributed
def test_shards_of_two_processes_are_put_together(policy_folder, tmp_path):
    files = [str(path) for path in (policy_folder, tmp_path / "ckpt", tmp_path / "whole.safetensors")]
    done = copied_processes.run(sharded_run.main, files, *environments(2))
    assert done.returncode == 0, done.output
    assert len(list((tmp_path / "ckpt").glob("*.distcp"))) == 2
    export_policy(tmp_path / "ckpt", tmp_path / "out", policy=str(policy_folder))
    exported = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in load_file(tmp_path / "whole.safetensors").items():
        assert torch.equal(exported[name], tensor), name
    assert not torch.equal(exported["model.norm.weight"], weights(policy_folder)["model.norm.weight"])


def test_one_name_of_tied_weights_is_enough(policy_folder, tmp_path):
    state = AutoModelForCausalLM.from_pretrained(policy_folder).state_dict()
    untied_name = {f"policy.{name}": tensor for name, tensor in state.items() if name != "model.embed_tokens.weight"}
    dcp.save({"model": untied_name}, checkpoint_id=tmp_path / "ckpt")
    export_policy(tmp_path / "ckpt", tmp_path / "out", policy=str(policy_folder))
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, state[name]), name


def test_tied_weights_that_differ_are_refused(policy_folder, tmp_path):
    state = AutoModelForCausalLM.from_pretrained(policy_folder).state_dict()
    ckpt = save_checkpoint(tmp_path / "last.ckpt", {**state, "lm_head.weight": state["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match=r"equal weights where LlamaForCausalLM ties them: .*lm_head\.weight"):
        export_policy(ckpt, tmp_path / "out", policy=str(policy_folder))
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_named(policy_folder, tmp_path):
    state = dict(AutoModelForCausalLM.from_pretrained(policy_folder).state_dict())
    del state["model.norm.weight"]
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    state.update({f"adapter.{i}": torch.zeros(1) for i in range(5)})
    with pytest.raises(ValueError, match="ckpt must have the weights of LlamaForCausalLM, got one ") as error:
        export_policy(save_checkpoint(tmp_path / "last.ckpt", state), tmp_path / "out", policy=str(policy_folder))
    text = str(error.value)
    assert "without model.norm.weight, " in text
    assert "with unknown adapter.0, adapter.1, adapter.2 and 2 more, " in text
    assert "with model.layers.0.mlp.up_proj.weight [3, 3] for [64, 64]" in text


def test_a_folder_that_is_not_empty_is_left_alone(small_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(ValueError, match="out must be empty or missing, got"):
        export_policy(small_run / "checkpoints/last.ckpt", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(small_run, tmp_path):
    (tmp_path / "out").mkdir()
    assert export_policy(small_run / "checkpoints/last.ckpt", tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out/model.safetensors").exists()


def test_the_newest_config_of_a_run_names_its_policy(small_run, tmp_path):
    for number in (2, 10):
        folder = tmp_path / f"csv/version_{number}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"model: {{policy: number_{number}}}\n")
    assert policy_of_run(tmp_path / "checkpoints/last.ckpt") == "number_10"


def test_a_checkpoint_without_its_run_needs_a_policy(small_run, tmp_path):
    ckpt = shutil.copy(small_run / "checkpoints/last.ckpt", tmp_path / "last.ckpt")
    (tmp_path / "sub/sub").mkdir(parents=True)
    far = Path(shutil.move(ckpt, tmp_path / "sub/sub/last.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"policy must be given: no config\.yaml of a run in"):
        export_policy(far, tmp_path / "out")
    (tmp_path / "sub/config.yaml").write_text("trainer: {}\n")
    with pytest.raises(ValueError, match=r"policy must be given: .*config\.yaml has no model\.policy"):
        export_policy(far, tmp_path / "out")


def test_a_generation_config_goes_along_as_it_is(policy_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(policy_folder, base)
    # What `save_pretrained` refuses to write: a temperature without sampling.
    settings = {"temperature": 0.6, "do_sample": False, "eos_token_id": [1, 2]}
    (base / "generation_config.json").write_text(json.dumps(settings))
    ckpt = save_checkpoint(tmp_path / "last.ckpt", AutoModelForCausalLM.from_pretrained(policy_folder).state_dict())
    export_policy(ckpt, tmp_path / "out", policy=str(base))
    exported = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (exported.temperature, exported.eos_token_id) == (0.6, [1, 2])
