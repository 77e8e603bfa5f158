"""The state machine runs the same lines millions of times."""

from __future__ import annotations

from collections.abc import Iterator

import coverage
import pytest


@pytest.fixture(autouse=True)
def _not_covered() -> Iterator[None]:
    """Without coverage, which would take longer than the tests; the others reach enough."""
    measuring = coverage.Coverage.current()
    if measuring is None:
        yield
        return
    measuring.stop()
    yield
    measuring.start()
