"""What code asks of the kernel: only what is on the list, with arguments that reach nobody else."""

import platform
import re
from pathlib import Path

import pytest

from appo.tools.python.sandbox import syscalls
from appo.tools.python.sandbox.seccomp import RULES
from tests.tools.python.own_walls import REFUSED, REFUSED_EVERYWHERE, refused_calls, system_call

MACHINE = platform.machine()
pytestmark = pytest.mark.skipif(MACHINE not in syscalls.ALLOWED, reason="system calls are not filtered here")

EPERM, ENOSYS = 1, 38
HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), r"#define __NR_(\w+) (\d+)"),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"), r"#define __NR(?:3264)?_(\w+) (\d+)"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_kernel(machine):
    path, pattern = HEADERS[machine]
    if not path.exists():
        pytest.skip(f"the kernel's table for {machine} is not installed")
    theirs = {name: int(number) for name, number in re.findall(pattern, path.read_text())}
    ours = syscalls.ALLOWED[machine] | syscalls.CHECKED[machine] | syscalls.OWN_WORLD[machine]
    ours |= REFUSED[machine] | REFUSED_EVERYWHERE | {"clone": syscalls.CLONE[machine], "clone3": syscalls.CLONE3}
    assert {name: number for name, number in ours.items() if theirs.get(name, number) != number} == {}


def test_every_call_with_checked_arguments_has_rules():
    assert all(set(checked) <= set(RULES) for checked in syscalls.CHECKED.values())


def test_calls_that_are_not_on_the_list_are_refused(attack):
    numbers = refused_calls()
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def reached(number):\n"
        "    return (libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno()) != (-1, 1)\n"
        f"[name for name, number in {numbers}.items() if reached(number)]"
    )
    assert len(numbers) > 70
    assert attack(code) == "[]"


@pytest.mark.parametrize("number", [syscalls.LAST_KNOWN + 1, 1000, 0x3FFF_FFFF])
def test_calls_of_kernels_to_come_do_not_exist(attack, number):
    assert attack(system_call(number)) == f"(-1, {ENOSYS})"


@pytest.mark.skipif(MACHINE != "x86_64", reason="a second table of calls is known of x86-64")
def test_second_table_of_calls_is_refused(attack):
    assert attack(system_call(0x4000_0000 | 39)) == f"(-1, {EPERM})"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[("fcntl", (0, command)) for command in (5, 6, 7, 8, 9, 10, 11, 15, 16, 36, 37, 38, 1024, 1026, 1031, 1033)],
        # FIOASYNC, FIOSETOWN, TIOCSTI, TIOCLINUX, BLKROSET
        *[("ioctl", (0, request)) for request in (0x5452, 0x8901, 0x5412, 0x541C, 0x125D)],
        # Locked and huge pages; pages to be merged with those of others; waiting with priorities.
        ("mmap", (0, 4096, 3, 0x2022, 0xFFFF_FFFF, 0)),
        ("mmap", (0, 2**21, 3, 0x40022, 0xFFFF_FFFF, 0)),
        *[("madvise", (0, 4096, advice)) for advice in (12, 21, 100)],
        *[("futex", (0, operation)) for operation in (6, 7, 8, 11, 12, 13, 6 | 128)],
        # Death signal, dumpability, filter, no new rights, subreaper, memory, tracer, merged memory
        *[("prctl", (option,)) for option in (1, 4, 22, 38, 36, 35, 0x59616D61, 67)],
        ("prlimit64", (1, 7)),
        ("getpriority", (2, 0)),
        # Families and kinds of sockets other than pairs of streams within the machine
        *[("socketpair", (family, 1, 0, 0)) for family in (0, 2, 10, 16, 17, 29, 38, 40)],
        *[("socketpair", (1, kind, 0, 0)) for kind in (2, 3, 5, 2 | 0x8_0000)],
    ],
)
def test_arguments_that_reach_others_are_refused(attack, name, arguments):
    assert attack(system_call(syscalls.CHECKED[MACHINE][name], *arguments)) == f"(-1, {EPERM})"


@pytest.mark.parametrize("flag", [0x80, 0x2000, 0x8000, 0x2_0000, 0x200_0000, 0x400_0000, 0x1000_0000, 0x4000_0000])
def test_no_namespace_tracee_or_sibling_is_made_by_clone(attack, flag):
    result = attack(system_call(syscalls.CLONE[MACHINE], (flag << 32 if flag == 0x80 else flag) | 0x2_0000 | 17))
    assert result in (f"(-1, {EPERM})", "(-1, 11)")


def test_what_programs_need_is_allowed(walls):
    if "namespaces" not in walls:
        pytest.skip("behind Landlock there is one process and no thread")
    from appo.tools import PythonTool

    tool = PythonTool(timeout_s=60.0)
    tool.start()
    code = (
        "import asyncio, multiprocessing, os, shutil, sqlite3, subprocess, sys, tempfile, threading\n"
        "async def shell():\n"
        "    process = await asyncio.create_subprocess_shell('echo 3 | cat', stdout=-1)\n"
        "    return (await process.communicate())[0]\n"
        "def square(queue):\n"
        "    queue.put(16)\n"
        "done = []\n"
        "thread = threading.Thread(target=done.append, args=(1,))\n"
        "thread.start(), thread.join()\n"
        "context = multiprocessing.get_context('fork')\n"
        "queue = context.Queue()\n"
        "process = context.Process(target=square, args=(queue,))\n"
        "process.start()\n"
        "folder = tempfile.mkdtemp()\n"
        "open(f'{folder}/a', 'w').write('a')\n"
        "shutil.copy2(f'{folder}/a', f'{folder}/b')\n"
        "shutil.rmtree(folder)\n"
        "done += [subprocess.run(['sort'], input=b'2', capture_output=True).stdout, asyncio.run(shell())]\n"
        "done += [queue.get(), process.join(), sqlite3.connect(':memory:').execute('select 5').fetchone()]\n"
        "done"
    )
    assert tool(code) == "[1, b'2\\n', b'3\\n', 16, None, (5,)]"
    tool.stop()
