"""Fuzzes a target: ``python -m tests.fuzz rows --minutes 10``. Exits with 1 if something was found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.campaign import Campaign, run_campaign
from tests.fuzz.targets import NAMES, target_named


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones follow")
    parser.add_argument("--out", type=Path, help="folder of findings; runs/fuzz/TARGET by default")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    target = target_named(options.target)
    folder = options.out or Path("runs/fuzz", target.name)
    if options.seconds is not None:
        Campaign(target, folder, options.seconds).run(options.seed)
        return 0
    num_tried, findings = run_campaign(target, options.minutes, folder, options.seed)
    for finding in findings:
        sys.stdout.write(f"{finding['place']}: {finding['message']}\n    {finding['input']!r:.300}\n")
    sys.stdout.write(f"{target.name}: {num_tried} inputs, {len(findings)} findings in {options.minutes:g} minutes\n")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
