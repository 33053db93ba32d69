"""Attacks by size and time: all that a call may use is bounded, and it ends with all that came from it."""

from __future__ import annotations

from appo.tools.python.attacks.attack import SETTINGS, Attack

_IGNORE = """
for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
"""
_PROCESSES = """
count = 1
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
except BlockingIOError:
    pass
count
"""
_THREADS = """
import threading
stop = threading.Event()
count = 0
try:
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
        count += 1
except RuntimeError:
    print(count < 9)
os._exit(0)
"""
_DAEMON = f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
{_IGNORE.strip().replace("for", "        for").replace("    signal", "            signal")}
        os.closerange(0, 100)
        signal.pause()
    os._exit(0)
os.wait()[1]
"""
_DISK = """
size = 0
try:
    for number in range(100):
        with open(str(number), 'wb', buffering=0) as file:
            for _ in range(16):
                size += file.write(bytes(2**16))
except OSError as error:
    print(error.errno)
"""
_LIMITS = """
raised = []
for name in ('AS', 'CPU', 'FSIZE', 'NOFILE', 'NPROC', 'CORE', 'MEMLOCK', 'MSGQUEUE', 'SIGPENDING'):
    limit = getattr(resource, f'RLIMIT_{name}', None)
    try:
        if limit is not None:
            resource.setrlimit(limit, (2**40, 2**40))
            raised.append(name)
    except (ValueError, OSError):
        pass
raised
"""
_FILES = "for number in range(10**5):\n    open(str(number), 'w').close()"
_TOO_LARGE = f"attempt(lambda: open('f', 'wb').truncate({SETTINGS.disk_mb} * 2**20 + 1))"
_TOO_MANY = ".*Too many open files.*"

ATTACKS = [
    Attack("bomb: processes", _PROCESSES, str(SETTINGS.max_processes), wall="namespaces"),
    Attack("bomb: processes", "attempt(os.fork)", "'EAGAIN'", wall="landlock"),
    Attack("bomb: threads", _THREADS, "True"),
    Attack("bomb: memory", "x = []\nwhile True:\n    x.append(bytearray(10**6))", "MemoryError"),
    Attack("bomb: one large piece of memory", "bytearray(2**40)", "MemoryError"),
    Attack("bomb: huge pages", "__import__('mmap').mmap(-1, 2**21, flags=0x40022)", "PermissionError.*"),
    Attack("bomb: locked pages", "attempt(lambda: call({'x86_64': 149, 'aarch64': 228}[os.uname().machine], 0, 4096))"),
    Attack(
        "bomb: recursion",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    [*map(lambda _: f(), [0])]\nf()",
        ".*",
    ),
    Attack("bomb: output", "while True:\n    os.write(1, b'x' * 2**20)", "x+", ends=("cut",)),
    Attack("bomb: disk", _DISK, "28", wall="namespaces"),
    Attack("bomb: a file with holes", _TOO_LARGE, "'EFBIG'"),
    Attack("bomb: empty files", _FILES, ".*No space left on device.*", wall="namespaces"),
    Attack("bomb: open files", "[os.open('/dev/null', 0) for _ in range(10**5)]", _TOO_MANY),
    Attack("bomb: pipes", "[os.pipe() for _ in range(10**5)]", _TOO_MANY),
    Attack("bomb: raise the limits", _LIMITS, r"\[\]", wall="namespaces"),
    Attack("bomb: a folder too deep", "for _ in range(1100):\n    os.mkdir('d')\n    os.chdir('d')", ".{0}"),
    Attack("bomb: a folder that is closed", "os.makedirs('a/b')\nopen('a/b/c', 'w')\nos.mkdir('closed', 0)", ".{0}"),
    Attack("endless: a loop", "while True:\n    pass", "", ("timeout",), timeout_s=0.3),
    Attack(
        "endless: one that ignores every signal",
        _IGNORE + "while True:\n    pass",
        "",
        ("timeout",),
        wall="namespaces",
        timeout_s=0.3,
    ),
    Attack(
        "endless: processes that hide their output",
        "if os.fork() == 0:\n    os.setsid()\nos.closerange(0, 9)\nwhile True:\n    pass",
        "",
        ("timeout",),
        wall="namespaces",
        timeout_s=0.3,
    ),
    Attack("endless: one operation", "9**9**9", "", ("timeout",), timeout_s=0.3),
    Attack("endless: stop oneself", "os.kill(os.getpid(), signal.SIGSTOP)", ".*", ("timeout", "exit"), timeout_s=0.3),
    Attack("outlive: a daemon that ignores every signal", _DAEMON, "0", wall="namespaces"),
]
