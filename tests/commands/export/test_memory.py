"""What an export holds in memory, measured in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM, LlamaConfig

from appo.policy.lora import Adapter, LoRA

ROOT = Path(__file__).parents[3]
EXPORT = """
import sys
from pathlib import Path
import peft, transformers
import appo.commands.export.writing
from appo.commands.export import export_policy
from benchmarks.memory_plan import forget_peak, resident
small, folder = sys.argv[1], Path(sys.argv[2])
transformers.AutoModelForCausalLM.from_pretrained(small)
forget_peak()
start = resident("VmRSS")
export_policy(folder / "ckpt", folder / "out", str(folder / "base"))
print(resident("VmHWM") - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux")
@pytest.mark.parametrize(("kind", "with_adapter"), [("file", False), ("shards", True)], ids=["whole", "adapter"])
def test_no_more_than_the_model_is_held(policy_folder, tmp_path, kind, with_adapter):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=889, hidden_size=1024, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8
    )
    model = AutoModelForCausalLM.from_config(config)
    num_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    shutil.copytree(policy_folder, tmp_path / "base")
    config.save_pretrained(tmp_path / "base")
    names = model.state_dict().keys()
    if with_adapter:
        pytest.importorskip("peft")
        model.save_pretrained(tmp_path / "base")
        names = Adapter(model, LoRA(rank=4)).trained().keys()
        (tmp_path / "config.yaml").write_text("model: {dtype: float32, lora: {rank: 4}}\n")
    state = {f"policy.{name}": tensor for name, tensor in model.state_dict().items()}
    if kind == "file":
        torch.save({"state_dict": {f"policy.{name}": state[f"policy.{name}"] for name in names}}, tmp_path / "ckpt")
    else:
        dcp.save({"state_dict": state}, checkpoint_id=tmp_path / "ckpt")
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    # What is freed goes back to the system at once: how much of it the C library would keep differs from run to run.
    allocator = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    environment = {**os.environ, **allocator, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, policy_folder, tmp_path], env=environment, check=True, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    # Tokenizer and libraries take some MiB; the largest matrix is 8 MiB, and three of a layer are there at once.
    assert int(done.stdout.splitlines()[-1]) < num_bytes + 40 * 2**20
