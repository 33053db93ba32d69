"""Target: what stands between code and whoever called it, when the code writes into it what it likes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace

from hypothesis import strategies as st

from appo.tools.base import ToolError
from appo.tools.python.attacks.attack import SETTINGS
from appo.tools.python.client import Execution, Interpreter, Session
from appo.tools.python.sandbox.settings import ANSWER, NO_PROCESS, Wall
from tests.fuzz.inputs import as_bytes
from tests.fuzz.target import Check, FindingError, Input, Target
from tests.tools.python.own_walls import gives

_ACTS = {
    "write": "os.write({0}, {1!r})",
    "read": "os.set_blocking({0}, False), os.read({0}, 64)",
    "close": "os.close({0})",
    "shut": "socket.socket(fileno=os.dup({0})).shutdown({0} % 3)",
    "move": "os.dup2({0}, {2})",
    "signal": "os.kill(os.getppid(), {2})",
    "stop": "os.kill(os.getpid(), signal.SIGSTOP)",
    "fork": "os.fork() or os._exit({2})",
    "exit": "os._exit({2})",
    "raise": "sys.exit({1!r})",
    "print": "print({1!r} * {2}, flush=True)",
    "claim": "import __main__; sys.stdout = sys.__stdout__ = None; __main__.__dict__.clear()",
    "hook": "sys.displayhook = lambda value: os.write({0}, {1!r})",
}
_HEAD = "import os, signal, socket, sys\n"
_ACT = "try:\n    {}\nexcept (OSError, ValueError, TypeError): pass\n"
_WAIT_S = 0.2
_MOST_BYTES = 2000

_SAID = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"\x00", b"\xff" * 8, b"\x00" * 8, ANSWER.pack(True, 0), NO_PROCESS, b"x" * 9000]),
)
_STEP = st.tuples(
    st.sampled_from(sorted(_ACTS)),
    st.sampled_from([0, 1, 2, 3, 3, 3, 4, 5]).map(str),
    _SAID.map(lambda data: data.decode("latin-1")),
    st.integers(0, 64).map(str),
).map("\x1f".join)
_FORGED = _SAID.map(lambda data: "said\x1f" + data.decode("latin-1"))


@contextmanager
def _channel() -> Iterator[Check]:
    walls: tuple[Wall, ...] = ("namespaces", "landlock")
    with ExitStack() as stack:
        interpreters = []
        for wall in walls:
            for keeps in (False, True):
                settings = replace(SETTINGS, wall=wall, keep_variables=keeps)
                if gives(settings):
                    interpreters.append((keeps, Interpreter(settings)))
                    stack.callback(interpreters[-1][1].stop)

        def check(value: Input) -> None:
            if value[0].startswith("said"):
                _forge(as_bytes(value[0].partition("\x1f")[2]))
                return
            keeps, interpreter = interpreters[len(value[0]) % len(interpreters)]
            _attack(interpreter, _HEAD + "".join(_ACT.format(_act(step)) for step in value[1:]), keeps)

        yield check


def _act(step: str) -> str:
    name, descriptor, rest = step.split("\x1f", 2)
    said, _, number = rest.rpartition("\x1f")
    return _ACTS[name].format(int(descriptor), as_bytes(said), int(number))


def _attack(interpreter: Interpreter, code: str, keeps: bool) -> None:
    session = interpreter.open()
    _believable(session.run(code, _WAIT_S, _MOST_BYTES), keeps)
    session.close()
    # Whatever it did: the next call works, and in the same interpreter.
    if interpreter._process.poll() is not None:
        raise FindingError("the interpreter ended")
    session = interpreter.open()
    execution = session.run("1 + 1", 60.0, _MOST_BYTES)
    session.close()
    if (execution.output, execution.end, execution.exit_code) != ("2\n", "exit", 0):
        raise FindingError(f"the next call gave {execution}")


def _believable(execution: Execution, keeps: bool) -> None:
    # Code that is stopped while it says nothing of its end runs out of time; that is told, and nothing else.
    if execution.end == "exit" and not (keeps or execution.exit_code is not None):
        raise FindingError(f"an end without an exit code: {execution}")
    if execution.exit_code is not None and not -64 <= execution.exit_code <= 255:
        raise FindingError(f"an exit code of {execution.exit_code}")
    if execution.is_alive and not keeps:
        raise FindingError("a process that should be dead counts as alive")
    if len(execution.output.encode()) > 4 * (_MOST_BYTES + 2**16):
        raise FindingError(f"an output of {len(execution.output)} characters")


def _forge(said: bytes) -> None:
    """The caller's side alone, whose other end says anything and is gone."""
    call, theirs = socket.socketpair()
    output, their_output = os.pipe()
    with theirs:
        theirs.sendall(said)
        os.write(their_output, said)
    os.close(their_output)
    living = SimpleNamespace(gives_sign_of_life=lambda: True)
    session = Session(living, call, output)
    try:
        session.run("1 + 1", _WAIT_S, _MOST_BYTES)
    except ToolError:
        return
    session.close()


TARGETS = [
    Target(
        "channel",
        st.one_of(
            st.builds(lambda which, steps: ["x" * which, *steps], st.integers(0, 3), st.lists(_STEP, max_size=8)),
            _FORGED.map(lambda forged: [forged]),
        ),
        _channel,
        seconds=20.0,
        is_waiting=True,
    )
]
