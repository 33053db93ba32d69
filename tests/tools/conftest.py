from collections.abc import Iterator

import pytest

from appo.tools import PythonTool


@pytest.fixture(scope="module")
def python() -> Iterator[PythonTool]:
    tool = PythonTool(timeout_s=20.0)
    tool.start()
    yield tool
    tool.stop()


@pytest.fixture(scope="session")
def has_namespaces(walls) -> bool:
    return "namespaces" in walls
