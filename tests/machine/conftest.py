"""The state machine runs the same lines millions of times."""

from __future__ import annotations

from collections.abc import Iterator

import coverage
import pytest

from trioreq._transport import routing_ids


@pytest.fixture(autouse=True)
def _free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libzmq in memory frees a routing id when the ROUTER was read, so nothing waits for it."""
    monkeypatch.setattr(routing_ids, "MOMENT", 0)
    monkeypatch.setattr(routing_ids, "LIMIT", 0)


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
