import subprocess
import sys

import pytest

PURE = ("functional", "core.trajectory", "core.collate", "scorers", "advantages", "losses")
HEAVY = ("lightning", "vllm", "transformers", "jsonargparse")


def test_tensor_maths_imports_neither_trainer_nor_engine():
    modules = ", ".join(f"appo.{name}" for name in PURE)
    code = f"import sys, {modules}; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


@pytest.mark.parametrize("module", ["appo", "appo.engines.base", "appo.engines"])
def test_importing_a_base_loads_no_large_package(module):
    code = f"import sys, {module}; print(*[name for name in {(*HEAVY, 'httpx')} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
