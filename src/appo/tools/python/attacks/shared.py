"""Attacks on what calls, users and machines share: the network, descriptors, locks, objects that the kernel counts."""

from __future__ import annotations

from appo.tools.python.attacks.attack import Attack

_PAIR = "(a := socket.socketpair()[0])"
_SOCKETS = (
    *(("AF_UNIX", "SOCK_STREAM"), ("AF_INET", "SOCK_STREAM"), ("AF_INET6", "SOCK_STREAM"), ("AF_VSOCK", "SOCK_STREAM")),
    *(("AF_NETLINK", "SOCK_RAW"), ("AF_PACKET", "SOCK_RAW"), ("AF_CAN", "SOCK_RAW"), ("AF_ALG", "SOCK_SEQPACKET")),
)
_SHARED = {
    "pair of datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "pair of packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    **{f"socket of {family}": f"socket.socket(socket.{family}, socket.{kind})" for family, kind in _SOCKETS},
    "name a socket": f"{_PAIR}.bind('\\0hub')",
    "connect a socket": f"{_PAIR}.connect('\\0hub')",
    "take connections": f"{_PAIR}.listen()",
    "hand a descriptor on": f"socket.send_fds({_PAIR}, [b'x'], [1])",
    "take a descriptor": f"socket.recv_fds({_PAIR}, 9, 1)",
    "enlarge a socket": f"{_PAIR}.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)",
    "enlarge a pipe": "fcntl.fcntl(os.pipe()[1], 1031, 2**20)",
    "lock a file of all": "fcntl.flock(open(os.__file__), fcntl.LOCK_SH)",
    "lock a part of a file of all": "fcntl.lockf(open(os.__file__), fcntl.LOCK_SH)",
    "lease a file of all": "fcntl.fcntl(open(os.__file__), 1024, fcntl.F_RDLCK)",
    "be told of changes": "fcntl.fcntl(os.open('.', 0), 1026, 1)",
    "seal memory": "os.memfd_create('x')",
    "count events": "os.eventfd(0)",
    "look anything up": "socket.create_connection(('127.0.0.1', 9), 1.0)",
}
_WITHOUT_FILES = """
try:
    socket.getaddrinfo('example.com', 80)
    found = ['a name']
except OSError:
    found = []
found
"""
_NESTED = (
    "import subprocess, sys\n"
    "code = 'import socket; socket.socket()'\n"
    "subprocess.run([sys.executable, '-S', '-c', code], capture_output=True).stderr.decode().strip().splitlines()[-1]"
)

ATTACKS = [
    *(Attack(f"shared: {name}", f"attempt(lambda: {act})") for name, act in _SHARED.items()),
    Attack("shared: resolve a name", _WITHOUT_FILES, r"\[\]"),
    Attack("shared: a socket in a program of one's own", _NESTED, ".*PermissionError.*", wall="namespaces"),
]
