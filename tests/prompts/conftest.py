"""Files of questions in every format, a tokenizer, and the real files where they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from appo.policy.loading import load_tokenizer

REAL_DATA = Path(__file__).parents[3] / "shared/data"

Row = dict[str, Any]
WriteRows = Callable[[Sequence[Row], str], str]


@pytest.fixture
def write_rows(tmp_path) -> WriteRows:
    """Writes rows to a file in the format that its suffix names and returns its path."""

    def write(rows: Sequence[Row], name: str) -> str:
        path = tmp_path / name
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        elif path.suffix == ".json":
            path.write_text(json.dumps(list(rows)), encoding="utf-8")
        elif path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as lines:
                writer = csv.DictWriter(lines, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
            pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return str(path)

    return write


@pytest.fixture
def real_data() -> Path:
    """The folder with files of other projects."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no files of other projects at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def tokenizer(policy_folder) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(policy_folder))
