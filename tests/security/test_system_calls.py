"""What code asks of the kernel: only what is on the list, with arguments that reach nobody else."""

import platform
import re
from pathlib import Path

import pytest

from appo.tools.python.attacks.system_calls import REFUSED, REFUSED_EVERYWHERE, refused_calls
from appo.tools.python.sandbox import syscalls
from appo.tools.python.sandbox.seccomp import RULES

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


def test_many_calls_are_tried_that_are_refused():
    assert len(refused_calls()) > 70


def test_every_call_with_checked_arguments_has_rules():
    assert all(set(checked) <= set(RULES) for checked in syscalls.CHECKED.values())


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
