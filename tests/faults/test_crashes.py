"""The long measurements of the benchmarks, in short: what crashes leave, and the effect on others.

Time is real. What makes it deterministic: nothing is said of the order, only of the end; bounds on
time are wide, since the machine may be busy.
"""

from __future__ import annotations

import pytest
import trio

from harness.measurements import crowd, pump, slow, soak

pytestmark = pytest.mark.slow

LIMIT = 60  # seconds of real time for a test that got stuck
ONCE = 4 * 2**20  # bytes that a server takes when it starts to work, and what measures it


async def test_clients_that_crash_leave_no_resources_behind() -> None:
    with trio.fail_after(LIMIT):
        report = await soak.soak(clients=4000, first=2000)
    assert report.faults(at_once=1.0) == []
    assert report.died == 4000


async def test_no_thread_finishes_work_for_crashed_clients() -> None:
    with trio.fail_after(LIMIT):
        # Work of 10 seconds: also on a busy machine, all are killed long before it is done.
        report = await pump.measure("trioreq", 600, steps=1000)
    assert report.state["done"] == 0
    assert report.state["handed_over"] <= 0  # live clients may have closed before the last was sent
    assert report.waits.percentile(50) < 0.1


async def test_stopped_clients_and_slow_clients_delay_no_other_client() -> None:
    with trio.fail_after(LIMIT):
        report = await slow.measure(clients=30, seconds=1.0)
    assert report.evicted > 0
    assert report.grown <= report.allowed + ONCE
    assert report.beside.percentile(99) <= max(2 * report.without.percentile(99), 0.02)


async def test_half_of_many_clients_are_killed_and_the_others_are_served() -> None:
    with trio.fail_after(LIMIT):
        report = await crowd.measure(800)
    assert (report.cancelled, report.left) == (400, 0)
    assert report.ended < 2
    assert report.meanwhile.percentile(100) < 2
