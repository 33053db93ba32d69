"""Notebooks, with fewer iterations than people see."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
READS_A_RUN = "04_read_a_run"
_SHORTER = {r"max_epochs=\d\d\b": "max_epochs=2", r"stop_after_tokens=\d+_000": "stop_after_tokens=1_000"}


def cells(path: Path) -> list[str]:
    """The code of a notebook, cell by cell, made short."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for long, short in _SHORTER.items():
        sources = [re.sub(long, short, source) for source in sources]
    return sources


def test_there_are_five():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 150_000
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(tmp|home|work|root)/", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != READS_A_RUN], ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(pyplot.gcf().axes) or pyplot.close("all"))
    module = ModuleType(path.stem)
    monkeypatch.setitem(sys.modules, path.stem, module)  # classes look their module up
    sources = cells(path)
    with pyplot.rc_context():
        for number, source in enumerate(sources):
            exec(compile(source, f"{path.name}[{number}]", "exec"), vars(module))
    assert len(drawn) == sum("plt.show()" in source for source in sources) > 0


@pytest.mark.slow
def test_a_run_of_ones_own_is_read_in_a_kernel(small_run, monkeypatch):
    monkeypatch.setenv("APPO_RUN", str(small_run))
    path = next(path for path in NOTEBOOKS if path.stem == READS_A_RUN)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "branches, mean reward" in printed
    assert "⟦branch 1⟧" in printed
