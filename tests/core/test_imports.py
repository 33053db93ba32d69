import subprocess
import sys

PURE = ("functional", "core.trajectory", "core.collate", "scorers", "advantages", "losses")
HEAVY = ("lightning", "vllm", "transformers", "jsonargparse")


def test_tensor_maths_imports_neither_trainer_nor_engine():
    modules = ", ".join(f"appo.{name}" for name in PURE)
    code = f"import sys, {modules}; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
