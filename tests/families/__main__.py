"""Measures families of models and writes the table of `docs/families.md`: ``python -m tests.families [family ...]``.

Without names it measures all of them. What was measured before of others stays. Options: ``--engine VLLMEngine``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

from tests.families.measuring import measure
from tests.families.policies import FAMILIES
from tests.families.table import ENGINES, read_results, write_results


def main() -> int:
    """Measures, writes after each family, and returns how many have a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="family", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    options = parser.parse_args()
    if unknown := [name for name in options.families if name not in FAMILIES]:
        parser.error(f"no family is named {', '.join(unknown)}")
    warnings.filterwarnings("ignore")
    num_faults = 0
    for family in options.families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(family, Path(folder), options.engine)
        write_results(read_results() | {(family, options.engine): found})
        num_faults += bool(found.faults)
        sys.stdout.write(f"{family}: {'; '.join(found.faults) or found.train}\n")
        sys.stdout.flush()
    return num_faults


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
