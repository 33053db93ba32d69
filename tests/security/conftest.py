from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from appo.tools.python.attacks.attack import SETTINGS
from appo.tools.python.client import Interpreter

Run = Callable[..., str]
"""Runs code and returns what it printed."""


def _running(interpreter: Interpreter) -> Run:
    def run(code: str, timeout_s: float = 30.0) -> str:
        execution = interpreter.open().run(code, timeout_s, 10_000)
        assert execution.end == "exit", (execution.end, execution.output)
        return execution.output.strip()

    return run


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def walled(request: pytest.FixtureRequest, walls) -> Iterator[Interpreter]:
    """A server behind each of the two walls."""
    if request.param not in walls:
        pytest.skip(f"this machine gives no {request.param}")
    interpreter = Interpreter(replace(SETTINGS, wall=request.param))
    yield interpreter
    interpreter.stop()


@pytest.fixture
def attack(walled) -> Run:
    """Runs code behind each of the two walls."""
    return _running(walled)


@pytest.fixture(scope="module")
def behind_landlock(walls) -> Iterator[Run]:
    """Runs code behind Landlock, as where there are no namespaces."""
    if "landlock" not in walls:
        pytest.skip("this machine gives no landlock")
    interpreter = Interpreter(replace(SETTINGS, wall="landlock"))
    yield _running(interpreter)
    interpreter.stop()


@pytest.fixture(params=["namespaces", "landlock"])
def keeping(request: pytest.FixtureRequest, walls) -> Iterator[Interpreter]:
    """A server behind each of the two walls whose processes keep their variables."""
    if request.param not in walls:
        pytest.skip(f"this machine gives no {request.param}")
    interpreter = Interpreter(replace(SETTINGS, wall=request.param, keep_variables=True))
    yield interpreter
    interpreter.stop()
