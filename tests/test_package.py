"""The package itself: its version, and its classes without what they need until they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import appo


def fresh(script: str) -> str:
    """What a script prints in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_the_package_is_imported_without_what_is_large():
    script = "import sys, appo; print({'lightning', 'torch', 'transformers'} & set(sys.modules))"
    assert fresh(script) == "set()\n"


@pytest.mark.slow
def test_its_classes_are_imported_when_they_are_asked_for():
    script = (
        "import sys, appo\n"
        "print('lightning' in sys.modules, {'APPOModule', 'RolloutCallback', '__version__'} <= set(dir(appo)))\n"
        "from appo import APPOModule, RolloutCallback, RolloutDataModule\n"
        "print([cls.__name__ for cls in (APPOModule, RolloutCallback, RolloutDataModule)])\n"
    )
    assert fresh(script) == "False True\n['APPOModule', 'RolloutCallback', 'RolloutDataModule']\n"


def test_it_knows_its_version():
    assert appo.__version__ == version("appo")
    command = [sys.executable, "-m", "appo", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"appo {version('appo')}\n"
