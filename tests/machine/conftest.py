"""What is not measured here: these run the same lines millions of times."""

from __future__ import annotations

from collections.abc import Iterator

import coverage
import pytest


@pytest.fixture(autouse=True)
def _not_covered() -> Iterator[None]:
    """Without coverage, which takes longer than the test, and learns nothing from it."""
    measuring = coverage.Coverage.current()
    if measuring is None:
        yield
        return
    measuring.stop()
    yield
    measuring.start()
