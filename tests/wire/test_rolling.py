"""Rolling restarts on one address: the short form of `python -m benchmarks rolling`.

Time is real, and what is restarted when is not said: each request has its own body, which the
servers count. `tests/memory/test_go_aways.py` does the same with many schedules.
"""

from __future__ import annotations

import pytest
import trio
from support.handlers import Worker
from support.serving import serving

import trioreq
from harness.measurements.rolling import one_address


@pytest.mark.slow
async def test_a_rolling_restart_loses_nothing_and_does_nothing_twice() -> None:
    with trio.fail_after(60):
        report = await one_address(2, clients=20, plain_clients=5, pause=0.05)
    assert (report.restarts, report.lost, report.twice, report.hung) == (2, 0, 0, 0), f"{report}"
    assert len(report.replied) > 100
    assert report.plain["reply"] > 10


async def test_leaving_the_block_closes_old_and_new_connections() -> None:
    """Also if a request is in flight on each: libzmq waits for sockets that are left open."""
    worker = Worker()
    with trio.fail_after(20):
        async with (
            serving(worker, max_connection_age=0.05) as server,
            trio.open_nursery() as nursery,
        ):
            async with trioreq.open_client(server.endpoints[0]) as client:
                nursery.start_soon(closed, client)
                await worker.log.wait("started wait")
                await client._connections._replaced.wait()
                assert await client.request(b"echo") == b"re:echo"
                nursery.start_soon(closed, client)
                await worker.log.wait("started wait", 2)
            await worker.log.wait("cancelled wait: disconnected", 2)


async def closed(client: trioreq.Client) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await client.request(b"wait")
