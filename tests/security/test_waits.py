"""No service decides how long we wait."""

from __future__ import annotations

import time

import pytest

from appo.tools import HTTPSearch
from appo.tools.base import ToolError
from appo.workers.retries import LONGEST_RETRY_AFTER_S, retry_after_s
from tests.tools.search.endpoint import Reply, endpoint

HOSTILE = [
    "86400",
    "9" * 400,
    "Fri, 01 Jan 2999 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Fri, 31 Dec 9999 23:59:59 +99999999999999",
    "Fri, 99 Foo 0000",
    "-5",
    "nan",
    "inf",
    "",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_what_is_asked_for_is_bounded(value):
    assert 0.0 <= retry_after_s(value) <= LONGEST_RETRY_AFTER_S


@pytest.mark.parametrize("value", HOSTILE[:3])
def test_one_answer_does_not_end_the_searches_of_a_run(value, monkeypatch):
    answers = [Reply(status=429, headers={"Retry-After": value}), Reply({"results": [{"text": "found"}]})]
    with endpoint(lambda number, request: answers[number]) as served:
        backend = HTTPSearch(served.url, timeout_s=5.0)
        backend.start()
        try:
            with pytest.raises(ToolError, match="given up"):
                backend.search("x", 1)
            now = time.monotonic
            monkeypatch.setattr(time, "monotonic", lambda: now() + LONGEST_RETRY_AFTER_S)
            assert backend.search("x", 1) == ["found"]
        finally:
            backend.stop()
