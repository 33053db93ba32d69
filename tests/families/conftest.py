"""The whole matrix takes minutes, so it runs where it is asked for alone."""

from __future__ import annotations

import pytest

_MARK = "families"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker(_MARK) and _MARK not in item.config.option.markexpr:
        pytest.skip(f"the whole matrix takes minutes: pytest -m {_MARK}")
