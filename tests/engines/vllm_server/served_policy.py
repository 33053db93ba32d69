"""Real `vllm serve` processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.engines.vllm_installed import SHARE


class ServedPolicy:
    """A server of one policy that can be killed and started again on its port, by default a free one.

    Args:
        policy: folder.
        log: what it says is added to this file.
        host: its address.
        port: None: a free one.
        offers_gloo: whether it offers vLLM's own weight transfer, by gloo.
    """

    def __init__(
        self, policy: str, log: Path, host: str = "127.0.0.1", port: int | None = None, offers_gloo: bool = False
    ) -> None:
        self.host, self.port = host, port or _free_port()
        self.address = f"http://{host}:{self.port}"
        self.policy = policy
        self.log = log
        self.offers_gloo = offers_gloo
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, place: Sequence[str] = ()) -> None:
        """Starts it, behind the words of a command that says where."""
        options = {
            "--port": str(self.port), "--host": self.host, "--dtype": "float32", "--max-model-len": "256",
            "--block-size": "32", "--logprobs-mode": "processed_logprobs", "--generation-config": "vllm",
            "--max-num-seqs": "64", "--gpu-memory-utilization": str(SHARE["gpu_memory_utilization"]),
            "--kv-cache-memory-bytes": str(int(SHARE["cache_gib"] * 2**30)),
        }  # fmt: skip
        flags = ["--enforce-eager", "--enable-scale-out", "--enable-prompt-tokens-details"]
        environment = {
            "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        # What `vllm serve` starts; that command itself looks for a distribution named "vllm", and the CPU build has
        # another name.
        command = [
            *place,
            sys.executable,
            "-m",
            "tests.engines.vllm_server.gloo_transfer"
            if self.offers_gloo
            else "vllm.entrypoints.launchers.api_server.entry",
            "--model",
            self.policy,
            *flags,
        ]
        if self.offers_gloo:
            options["--weight-transfer-config"] = '{"backend": "gloo"}'
        for name, value in options.items():
            command += [name, value]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Ends it, and all its processes, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
