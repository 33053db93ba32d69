"""Which way weights go to servers, and the address of this machine at it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A way of vLLM to send weights from a trainer.

    Attributes:
        module: of vLLM, or of who has registered it there.
        init_info: name in it of what vLLM's `WeightTransferTrainerFactory` takes.
        device: kind of device that it sends from.
    """

    module: str
    init_info: str
    device: str


BACKENDS = {"nccl": Backend("vllm.distributed.weight_transfer.nccl_engine", "NCCLTrainerInitInfo", "cuda")}
"""Those that can be used, by the name that servers are started with (``--weight-transfer-config``)."""


def choose_backend(offers: Mapping[str, str | None]) -> str | None:
    """Decides how weights go to servers, and says so in the log.

    Args:
        offers: the backend that each server was started with, by address.

    Returns:
        Name of the backend; None for a folder.
    """
    name = next(iter(offers.values()))
    reason = ""
    if len(set(offers.values())) > 1:
        told = ", ".join(f"{address}: {offer or 'none'}" for address, offer in offers.items())
        reason = f": --weight-transfer-config must be the same for all of them, got {told}"
    elif name is not None and name not in BACKENDS:
        reason = f": their --weight-transfer-config must name {' or '.join(BACKENDS)}, got {name}"
    elif name is not None and BACKENDS[name].device == "cuda" and not torch.cuda.is_available():
        reason = f": {name} sends from a GPU, and the training has none"
    if reason or name is None:
        log.log(logging.WARNING if reason else logging.INFO, "weights go to the servers through a folder%s", reason)
        return None
    log.info("weights go to the servers by vLLM's own transfer (%s)", name)
    return name


def local_address(urls: Sequence[str]) -> str:
    """Finds the address of this machine at the way to servers.

    Args:
        urls: of the servers; one on another machine decides.

    Raises:
        ValueError: if there is no way.
    """
    found = []
    for url in urls:
        parts = urlsplit(url)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
                way.connect((parts.hostname, parts.port or 80))  # nothing is sent
                found.append(str(way.getsockname()[0]))
        except OSError as error:
            raise ValueError(f"transfer_address must be given: no way to {url} was found ({error})") from error
    return next((address for address in found if not address.startswith("127.")), found[0])


def free_port(address: str) -> int:
    """Finds a port at which nothing listens.

    Args:
        address: of this machine.

    Raises:
        ValueError: if it is another's.
    """
    try:
        with socket.socket() as free:
            free.bind((address, 0))
            return int(free.getsockname()[1])
    except OSError as error:
        raise ValueError(f"transfer_address must be an address of this machine, got {address!r} ({error})") from error
