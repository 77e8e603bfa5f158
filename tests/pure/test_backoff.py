"""The pause after failures. Pure."""

from __future__ import annotations

import pytest

from trioreq._backoff import backoff


@pytest.mark.parametrize(
    ("failures", "pause"), [(1, 0.5), (2, 1.0), (6, 16.0), (7, 30.0), (1025, 30.0), (10**9, 30.0)]
)
def test_the_pause_doubles_up_to_its_limit(failures: int, pause: float) -> None:
    """However many failures there are."""
    assert backoff(0.5, 30.0, failures) == pause
