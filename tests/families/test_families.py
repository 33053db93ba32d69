"""Every family of models trains, or is refused with what is missing; a few of them that differ in every test run."""

from __future__ import annotations

import pytest

from tests.families.measuring import REFUSED, YES, measure
from tests.families.policies import FAMILIES
from tests.families.table import PAGE, read_results, table

SHORT = {
    "gemma2": YES,  # windows, soft caps, tied embeddings, an attention of its own
    "qwen3_moe": YES,  # experts
    "deepseek_v3": YES,  # keys and values of unlike size
    "mamba": REFUSED,  # no attention
}


def check(family, folder):
    found = measure(family, folder, "HFEngine")
    assert found.faults == []
    known = read_results()[family, "HFEngine"]
    assert (found.train, found.lora, found.export) == (known.train, known.lora, known.export)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", SHORT)
def test_families_that_differ_train_or_are_refused_as_the_table_says(tmp_path, family):
    assert check(family, tmp_path).train.startswith(SHORT[family])


@pytest.mark.families
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in SHORT])
def test_all_others_train_or_are_refused_as_the_table_says(tmp_path, family):
    check(family, tmp_path)


@pytest.mark.families
@pytest.mark.vllm
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_vllm_samples_from_trains_too(tmp_path, family):
    assert measure(family, tmp_path, "VLLMEngine").faults == []


def test_the_documentation_has_what_was_measured_of_every_family():
    results = read_results()
    assert {family for family, engine in results if engine == "HFEngine"} == FAMILIES.keys()
    assert table(results) in PAGE.read_text(encoding="utf-8")
    assert [fault for found in results.values() for fault in found.faults] == []
