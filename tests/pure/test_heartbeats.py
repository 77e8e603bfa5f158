"""How a heartbeat is divided. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioreq._transport.heartbeats import heartbeat_times


@pytest.mark.parametrize(
    ("heartbeat", "times"),
    [
        (15.0, (10.0, 5.0)),
        (60.0, (45.0, 15.0)),
        (20.0, (15.0, 5.0)),
        (10.0, (5.0, 5.0)),
        (2.0, (1, 1)),
    ],
)
def test_a_pong_has_a_quarter_of_the_time_but_not_too_little(
    heartbeat: float, times: tuple[float, float]
) -> None:
    assert heartbeat_times(heartbeat) == times


@given(st.floats(1e-3, 2e6))
def test_silence_is_noticed_within_the_heartbeat(heartbeat: float) -> None:
    interval, timeout = heartbeat_times(heartbeat)
    assert interval + timeout == pytest.approx(heartbeat)
    assert interval >= timeout > 0  # or a PING would go out while one is not yet answered
