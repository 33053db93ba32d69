import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from appo.advantages import ADVANTAGES
from appo.core.registry import Registry
from appo.losses import LOSSES
from appo.scorers import SCORERS


def test_the_components_of_the_tensor_maths_are_registered():
    assert list(SCORERS) == [
        "BalancedEntropy", "BranchingScore", "Entropy", "FunctionScorer", "HindsightDivergence",
        "InformationGain", "LikelihoodGain", "NoBranching", "Oracle", "Position", "RandomPosition", "SegmentCut",
        "Surprisal", "ToolBoundary", "TreeUniform",
    ]  # fmt: skip
    assert list(ADVANTAGES) == [
        "AnchorStateAdvantage", "DualGroupAdvantage", "EntropyAwareAdvantage", "GlobalBatchAdvantage", "GroupAdvantage",
        "InformationGainAdvantage", "LeaveOneOut", "NodeValueAdvantage", "ProceduralAdvantage", "SegmentAdvantage",
        "SharedPrefixAdvantage", "SiblingAdvantage", "TreeAdvantage",
    ]  # fmt: skip
    assert list(LOSSES) == [
        "ClipBalancedLoss", "ClippedImportanceLoss", "ClippedLoss", "ProceduralLoss", "SequenceClippedLoss",
    ]  # fmt: skip


def test_register_returns_the_class_and_lists_names_in_order():
    registry = Registry("scorer", group="appo.scorers")
    assert registry.register(list) is list
    assert registry.register(dict) is dict
    assert registry.register(dict) is dict
    assert list(registry) == ["dict", "list"]
    assert registry["list"] is list
    assert "dict" in registry
    assert "set" not in registry


def test_a_plugin_registers_under_its_class_name(monkeypatch):
    registry = Registry("scorer", group="appo.scorers")
    point = EntryPoint(name="counter", value="collections:Counter", group="appo.scorers")
    other = EntryPoint(name="other", value="collections:OrderedDict", group="appo.losses")
    monkeypatch.setattr("appo.core.registry._points", lambda: EntryPoints([point, other]))
    registry.load_plugins()
    assert list(registry) == ["Counter"]


def test_a_plugin_that_fails_to_import_is_named(monkeypatch):
    registry = Registry("scorer", group="appo.scorers")
    point = EntryPoint(name="gone", value="a_package_that_is_not_there:Gone", group="appo.scorers")
    monkeypatch.setattr("appo.core.registry._points", lambda: EntryPoints([point]))
    with pytest.raises(ModuleNotFoundError) as caught:
        registry.load_plugins()
    assert caught.value.__notes__ == ["raised while loading the scorer plug-in 'a_package_that_is_not_there:Gone'"]


def test_an_unknown_name_is_refused_with_the_known_ones():
    registry = Registry("scorer", group="appo.scorers")
    registry.register(dict)
    with pytest.raises(ValueError, match="no scorer is named 'list'; registered: dict"):
        registry["list"]


def test_a_mistyped_name_gets_a_hint():
    with pytest.raises(
        ValueError, match=r"no loss is named 'ClippedLos' \(did you mean 'ClippedLoss'\?\); registered: "
    ):
        LOSSES["ClippedLos"]


def test_two_classes_of_one_name_are_refused():
    registry = Registry("scorer", group="appo.scorers")
    registry.register(type("Twin", (), {}))
    with pytest.raises(ValueError, match=r"scorer 'Twin' of .* is already registered by "):
        registry.register(type("Twin", (), {}))


WORDS: Registry[object] = Registry("word", group="appo.words")


def test_a_class_that_is_expected_is_imported_when_it_is_asked_for(tmp_path, monkeypatch):
    lines = ["from tests.core.test_registry import WORDS", "", "@WORDS.register", "class Late:", "    pass", ""]
    (tmp_path / "late_words.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    WORDS.expect({"Late": "late_words"})
    assert "Late" in WORDS
    assert list(WORDS) == ["Late"]
    assert "late_words" not in sys.modules
    assert WORDS["Late"].__name__ == "Late"
    assert "late_words" in sys.modules
