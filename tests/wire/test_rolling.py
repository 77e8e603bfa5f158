"""Rolling restarts on one address: the short form of `python -m benchmarks rolling`.

Time is real, and what is restarted when is not said: each request has its own body, which the
servers count. `tests/memory/test_go_aways.py` does the same with many schedules.
"""

from __future__ import annotations

import pytest
import trio

from harness.measurements.rolling import one_address


@pytest.mark.slow
async def test_a_rolling_restart_loses_nothing_and_does_nothing_twice() -> None:
    with trio.fail_after(60):
        report = await one_address(2, clients=20, plain_clients=5, pause=0.05)
    assert (report.restarts, report.lost, report.twice, report.hung) == (2, 0, 0, 0), f"{report}"
    assert len(report.replied) > 100
    assert report.plain["reply"] > 10
