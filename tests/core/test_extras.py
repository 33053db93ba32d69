from __future__ import annotations

import re
import sys

import pytest

from appo.core.extras import MissingPackageError, import_extra, require_extra


def test_a_package_that_is_missing_is_named_with_the_extra_that_has_it():
    message = 'SomeTool needs the package no-such-package, which is not installed: pip install "appo[some]", or so'
    with pytest.raises(MissingPackageError, match=re.escape(message)):
        import_extra("no_such_package.part", "SomeTool", "some", ", or so")
    with pytest.raises(MissingPackageError, match=re.escape(message.partition(", or")[0])):
        require_extra("no_such_package", "SomeTool", "some")


def test_a_package_that_is_there_is_imported():
    assert import_extra("json.decoder", "SomeTool", "some") is sys.modules["json.decoder"]
    require_extra("json", "SomeTool", "some")


def test_a_package_that_misses_another_one_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as error:
        import_extra("needs_more", "SomeTool", "some")
    assert not isinstance(error.value, MissingPackageError)
