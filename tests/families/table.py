"""What was measured of families of models, as a file and as the table of the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from tests.families.measuring import REFUSED, YES, Findings
from tests.families.policies import FAMILIES

ENGINES = ("HFEngine", "VLLMEngine")
RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs/families.md"
_HEAD = ["| family | particular | HFEngine | VLLMEngine | packed | LoRA | export |", "|---|---|---|---|---|---|---|"]
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)

Results = Mapping[tuple[str, str], Findings]


def read_results() -> dict[tuple[str, str], Findings]:
    """What was measured, by family and engine."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    return {(row["family"], row["engine"]): Findings(**row) for row in rows}


def write_results(results: Results) -> None:
    """Writes what was measured, and the table of it."""
    order = list(FAMILIES)
    rows = sorted(results.values(), key=lambda found: (order.index(found.family), found.engine))
    text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_TABLE.sub(lambda _: table(results), page), encoding="utf-8")


def table(results: Results) -> str:
    """The lines of the table, with what is refused below it."""
    lines, notes = list(_HEAD), []
    for family, spec in FAMILIES.items():
        found = results.get((family, ENGINES[0]))
        if found is None:
            continue
        other = results.get((family, ENGINES[1]))
        values = (found.train, _everything(other) if other else "", found.packed, found.lora, found.export)
        cells = [_cell(value, family, notes) for value in values]
        lines.append(f"| `{family}` | {spec.shows} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes]) + "\n"


def _everything(found: Findings) -> str:
    """Whether all works that was measured, or what does not first."""
    return next((value for value in (found.train, found.lora, found.export) if value != YES), YES)


def _cell(value: str, family: str, notes: list[str]) -> str:
    if value in ("", YES):
        return value
    if value.startswith(REFUSED):
        note = f"- `{family}`: {value.removeprefix(REFUSED).partition('; rollout.engine')[0]}"
        notes.append(fill(note, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
        return "refused"
    return "padded" if not value.startswith("fault") else value
