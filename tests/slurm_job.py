"""A job of one process, as SLURM starts it."""

from __future__ import annotations

import os
from pathlib import Path

_SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
[ "$2" != 7 ] || { echo no such job >&2; exit 1; }
"""


def slurm_job(folder: Path) -> dict[str, str]:
    """Its environment; a `scontrol` in the folder adds what it is asked to the file `asked`, and knows no job 7."""
    folder.mkdir(exist_ok=True)
    program = folder / "scontrol"
    program.write_text(_SCONTROL)
    program.chmod(0o755)
    job = {"NTASKS": "1", "JOB_NAME": "appo", "JOB_ID": "42", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    return {"PATH": f"{folder}:{os.environ['PATH']}", **{f"SLURM_{name}": value for name, value in job.items()}}
