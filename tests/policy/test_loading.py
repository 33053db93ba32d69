"""What reading a policy takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appo.policy.loading import load_tokenizer
from appo.policy.text import decode, encode
from tests.families.policies import build

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from importlib import import_module
from pathlib import Path
from tests.without_extras import hide_the_rest

hidden = hide_the_rest()
assert {"peft", "pytest", "matplotlib", "bm25s", "vllm"} & hidden, hidden

import torch
from appo.policy.loading import load_policy

root = Path("src/appo")
for file in root.glob("**/*.py"):
    name = ".".join(("appo", *file.relative_to(root).with_suffix("").parts))
    try:
        import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        print(name, "wants", error.name)
# As Lightning does on one device. A number makes transformers take the CPU for one that was chosen.
with torch.device("cpu", 0):
    print(load_policy(sys.argv[1]).device)
"""


def test_without_extras_everything_is_imported_and_a_policy_is_loaded_on_the_device_of_the_trainer(policy_folder):
    command = [sys.executable, "-c", SCRIPT, str(policy_folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # What needs it reads it in a process of its own.
    assert done.stdout == "appo.rewards.equivalence wants math_verify\ncpu\n"


def test_a_tokenizer_that_loses_what_its_file_keeps_is_refused(tmp_path):
    policy = build("llama", tmp_path / "policy")
    settings = policy / "tokenizer_config.json"
    # As distillations into Llama have it whose vocabulary is byte-level.
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    message = r"must read text as its tokenizer.json says, got LlamaTokenizer in .*Yes.' is .*tokenizer_class in"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(str(policy))
    settings.write_text(settings.read_text().replace("LlamaTokenizerFast", "PreTrainedTokenizerFast"))
    tokenizer = load_tokenizer(str(policy))
    assert decode(tokenizer, encode(tokenizer, "a  b\n")) == "a  b\n"
