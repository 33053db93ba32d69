"""The config of a stranger's run is read for its values: nothing is imported or looked up for it."""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from appo.commands.export.run_config import adapted_run, policy_of_run

MODULE = "import pathlib\npathlib.Path(__file__).with_name('caught').touch()\nclass L: ...\n"


@pytest.fixture
def export_of(tmp_path, monkeypatch):
    """What an export reads off a config with some model section."""
    (tmp_path / "evilmod.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SOME_SECRET", "s3cret")
    (tmp_path / "run/checkpoints").mkdir(parents=True)

    def read(function, **model) -> object:
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"model": model, "a": "b"}))
        return function(tmp_path / "run/checkpoints/last.ckpt")

    yield read
    assert "evilmod" not in sys.modules
    assert not Path(tmp_path / "caught").exists()


@pytest.mark.parametrize(
    "policy", ["attacker/${oc.env:SOME_SECRET}", "${a}", "${oc.decode:x}", "${oc.create:[1]}", "${unknown:1}"]
)
def test_a_policy_is_not_looked_up(export_of, policy):
    with pytest.raises(ValueError, match=r"model\.policy of .*config\.yaml must hold plain values, got") as error:
        export_of(policy_of_run, policy=policy)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "lora",
    [
        {"class_path": "evilmod.L"},
        {"rank": 4, "init_args": {"class_path": "evilmod.L"}},
        {"rank": 4, "targets": [{"class_path": "evilmod.L"}]},
        {"rank": "${oc.env:SOME_SECRET}"},
        {"rank": 4, "targets": ["x", "${oc.env:SOME_SECRET}"]},
        {"${oc.env:SOME_SECRET}": 4},
        "${oc.env:SOME_SECRET}",
    ],
)
def test_an_adapter_imports_nothing(export_of, lora):
    with pytest.raises(ValueError, match=r"model\.lora of .*config\.yaml must") as error:
        export_of(adapted_run, lora=lora, dtype="float32")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("lora", ["evilmod.L", ["evilmod.L"], {"rank": "evilmod.L"}, {"evilmod.L": 1}])
def test_the_name_of_a_class_is_no_adapter_either(export_of, lora):
    with pytest.raises(ValueError, match=r"model\.lora of"):
        export_of(adapted_run, lora=lora, dtype="float32")


def test_a_plain_config_is_read(export_of):
    assert export_of(policy_of_run, policy="folder", lora={"class_path": "evilmod.L"}) == "folder"
    assert export_of(adapted_run, lora={"rank": 4}, dtype="float32", policy="${a}").lora.rank == 4


LEVELS = "abcdefghij"
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{other}'] * 9)}]\n" for other, one in pairwise(LEVELS)
)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "model: {policy: x",
            "\0",
            "a: *b",
            "a: &t{b: 1}",
            "a: 1\na: 2",
            "!!python/object/apply:os.getpid []",
            "\xff",
        ),
        *("a: " + "[" * 5000, "a: " + "{b: " * 5000, "- " * 5000, ALIASES, "a: '" + "x" * 2**23, "a: ${"),
    ],
    ids=lambda text: text[:12],
)
def test_a_config_that_is_made_to_break_a_reader_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    began = time.process_time()
    with pytest.raises(ValueError, match=r"^[^\n]{,500}$"):
        policy_of_run(tmp_path / "last.ckpt")
    assert time.process_time() - began < 2.0


def test_a_config_may_refer_to_what_stands_in_it(tmp_path):
    (tmp_path / "config.yaml").write_text("a: &a [b, c]\nd: *a\nmodel:\n  policy: e\n  other: *a\n")
    assert policy_of_run(tmp_path / "last.ckpt") == "e"
