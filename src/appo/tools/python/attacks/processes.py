"""Attacks on processes: those of the user who trains, the interpreter, other calls."""

from __future__ import annotations

from appo.tools.python.attacks.attack import Attack

_NONE = r"\[\]"
_OPENED = """
[way for way in (os.O_RDONLY, os.O_RDWR) if attempt(lambda: os.open(path, way))[0] != 'E']
"""
_IN_PROC = ("mem", "environ", "cmdline", "maps", "status", "stat", "io", "auxv", "mountinfo", "cgroup", "oom_score_adj")
_FOLDERS_IN_PROC = ("fd", "task", "root", "cwd", "map_files", "ns", "net")
_ON_OTHERS = {
    "kill": "os.kill(pid, signal.SIGKILL)",
    "stop": "os.kill(pid, signal.SIGSTOP)",
    "ask whether it is there": "os.kill(pid, 0)",
    "kill its group": "os.killpg(os.getpgid(pid), signal.SIGTERM)",
    "kill through a descriptor": "signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)",
    "own a pipe in its name": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, pid)",
    "have it signalled by a pipe": "fcntl.fcntl(os.pipe()[0], 10, signal.SIGKILL)",
    "change its limits": "resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))",
    "read its limits": "resource.prlimit(pid, resource.RLIMIT_CPU)",
    "slow it down": "os.setpriority(os.PRIO_PROCESS, pid, 19)",
    "ask for its priority": "os.getpriority(os.PRIO_PROCESS, pid)",
    "idle it": "os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))",
    "crowd it": "os.sched_setaffinity(pid, [0])",
    "trace": "call({'x86_64': 101, 'aarch64': 117}[os.uname().machine], 16, pid)",
    "seize": "call({'x86_64': 101, 'aarch64': 117}[os.uname().machine], 0x4206, pid)",
    "read its memory": "call({'x86_64': 310, 'aarch64': 270}[os.uname().machine], pid)",
    "write its memory": "call({'x86_64': 311, 'aarch64': 271}[os.uname().machine], pid)",
    "take its descriptor": "call(438, os.open('/dev/null', 0), 1)",
    "compare with it": "call({'x86_64': 312, 'aarch64': 272}[os.uname().machine], os.getpid(), pid)",
    "join its namespaces": "call({'x86_64': 308, 'aarch64': 268}[os.uname().machine], 0)",
}
_ON_ONESELF = {
    "become root": "os.setuid(0)",
    "become root's group": "os.setgid(0)",
    "join groups": "os.setgroups([0])",
    "become important": "os.setpriority(os.PRIO_PROCESS, 0, -5)",
    "die slowly": "os.nice(1)",
    "be scheduled last": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "take one core": "os.sched_setaffinity(0, [0])",
    "name the machine": "call({'x86_64': 170, 'aarch64': 161}[os.uname().machine])",
}
_TO_SERVER = """
sent = []
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
    for target in (os.getppid() or -1, os.getppid() - 1 or -1):
        try:
            os.kill(target, number)
            sent.append((target, number))
        except OSError:
            pass
sent
"""
_DESCRIPTORS = """
opened = []
for descriptor in range(3, 1000):
    try:
        os.fstat(descriptor)
        opened.append(descriptor)
    except OSError:
        pass
opened
"""
_ENVIRONMENT = "import glob\nlibc.getenv(b'PATH'), dict(os.environ)"
_SETTINGS = """
import sys
shown = repr((sys.argv, sys.orig_argv, sys.path))
[word for word in ('memory', 'disk_mb', 'appo') if word in shown]
"""

ATTACKS = [
    *(
        Attack(f"another process: open its {name}", f"path = f'/proc/{{pid}}/{name}'\n{_OPENED}", _NONE)
        for name in _IN_PROC
    ),
    *(
        Attack(f"another process: list its {name}", f"attempt(lambda: os.listdir(f'/proc/{{pid}}/{name}'))")
        for name in _FOLDERS_IN_PROC
    ),
    *(Attack(f"another process: {name}", f"attempt(lambda: {act})") for name, act in _ON_OTHERS.items()),
    *(Attack(f"oneself: {name}", f"attempt(lambda: {act})") for name, act in _ON_ONESELF.items()),
    Attack("the interpreter: signal it", _TO_SERVER, _NONE),
    Attack("the interpreter: find a descriptor of it", _DESCRIPTORS, _NONE),
    Attack("the interpreter: read its environment", _ENVIRONMENT, r"\(0, \{\}\)"),
    Attack("the interpreter: read how it was started", _SETTINGS, _NONE),
]
