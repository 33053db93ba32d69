"""A training on two nodes, which are network namespaces of this machine, against one process; needs root.

    python -m tests.distributed.two_nodes [--server]

Each node has a loopback and an address of its own, and one process that torchrun has started; they meet on a bridge.
With ``--server`` both sample from a vLLM server on a third node, and so does the process that they are compared with.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from appo.sft import TinyPolicy, WorldConversations
from tests.distributed.whole_runs import ROOT, TRAINED, arguments, difference
from tests.engines.vllm_server.served_policy import ServedPolicy

BRIDGE, PORT = "appo-bridge", 29511
NODES = {"appo-node-0": "10.77.0.1", "appo-node-1": "10.77.0.2", "appo-engine": "10.77.0.3"}
SERVED = 8077


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def nodes() -> Iterator[None]:
    """Three namespaces whose interfaces meet on a bridge."""
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        ip("address", "add", "10.77.0.254/24", "dev", BRIDGE)
        for number, (name, address) in enumerate(NODES.items()):
            ip("netns", "add", name)
            ip("link", "add", f"appo-v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"appo-v{number}", "master", BRIDGE, "up")
            for words in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up")):
                ip("-n", name, *words)
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        yield
    finally:
        for name in NODES:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)


def on_node(number: int, args: Sequence[str]) -> subprocess.Popen[str]:
    """Starts the process of a node with torchrun."""
    names = list(NODES)
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}",
        f"--master-addr={NODES[names[0]]}", f"--master-port={PORT}", "-m", "appo", *args,
    ]  # fmt: skip
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "eth0",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = ["ip", "netns", "exec", names[number], *torchrun]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def main() -> None:
    """Trains both ways and prints how far the weights are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="store_true", help="sample from a vLLM server on a third node")
    parser.add_argument("--strategy", default="fsdp2")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small = TinyPolicy(WorldConversations(), hidden_size=64, num_layers=1, num_heads=2, mlp_size=64)
        small.build(folder / "policy")
        stack.enter_context(nodes())
        trained = [*TRAINED, "--rollout.syntax.instructions=null", "--data.max_prompt_tokens=128"]
        if options.server:
            server = ServedPolicy(str(folder / "policy"), folder / "server.log", NODES["appo-engine"], SERVED)
            server.start(["ip", "netns", "exec", "appo-engine"])
            stack.callback(server.kill)
            trained += [
                "--rollout.engine=VLLMServerEngine",
                f"--rollout.engine.addresses=[http://{NODES['appo-engine']}:{SERVED}]",
                f"--rollout.engine.weights_folder={folder / 'weights'}",
            ]
        shared = (folder / "policy", options.strategy, 1, "--trainer.num_nodes=2", *trained)
        processes = [on_node(number, arguments(folder / "two", *shared)) for number in range(2)]
        for process in processes:
            _, told = process.communicate(timeout=540)
            if process.returncode:
                raise SystemExit("\n".join(line for line in told.splitlines() if "rror" in line)[-3000:])
        alone = arguments(folder / "one", folder / "policy", "auto", 1, *trained)
        subprocess.run([sys.executable, "-m", "appo", *alone], cwd=ROOT, check=True, timeout=540)
        moved = difference(folder / "two/policy", folder / "policy")
        apart = difference(folder / "two/policy", folder / "one/policy")
        sys.stdout.write(f"{options.strategy}: weights moved by {moved:.2e} and are {apart:.2e} apart\n")


if __name__ == "__main__":
    main()
