"""`trio.from_thread` in a handler that is a plain function, in threads of trio's.

Time is real; everything waits for events, under a limit.
"""

from __future__ import annotations

import threading

import pytest
import trio
from support.handlers import STUBBORN, Log
from support.serving import serving

import trioreq
from harness.clients import Clients

pytestmark = pytest.mark.slow


async def test_functions_that_outlive_the_request_are_refused(clients: Clients) -> None:
    called: list[str] = []

    def handler(request: trioreq.Request) -> bytes:
        with pytest.raises(RuntimeError, match=r"handler async.*trio\.to_thread\.run_sync"):
            trio.from_thread.run(trio.sleep, 0)
        with pytest.raises(RuntimeError, match=r"handler async.*trio\.to_thread\.run_sync"):
            trio.from_thread.run_sync(called.append, "called")
        return b"refused"

    async with serving(handler) as server:
        client = clients.connect(server.endpoints[0])
        assert await client.request(b"") == [b"refused"]
    assert not called


async def test_check_cancelled_asks_the_request_that_runs_in_the_thread(clients: Clients) -> None:
    log = Log()
    threads: set[int] = set()

    def handler(request: trioreq.Request) -> bytes:
        threads.add(threading.get_ident())
        trio.from_thread.check_cancelled()
        if request.body == b"wait":
            log.add("started")
            forever = threading.Event()
            try:
                for _ in range(STUBBORN * 1000):
                    forever.wait(0.001)
                    trio.from_thread.check_cancelled()
            except trioreq.RequestCancelled as cancelled:
                log.add(f"cancelled: {cancelled.reason}")
                raise
        return b"done"

    async with serving(handler, workers=1) as server:
        client = clients.connect(server.endpoints[0])
        await client.send(b"wait")
        await log.wait("started")
        client.close()
        await log.wait("cancelled: disconnected")
        assert await clients.connect(server.endpoints[0]).request(b"echo") == [b"done"]
        assert server.statistics().cancelled_by_disconnect == 1
    assert len(threads) == 1


async def test_trio_may_use_the_thread_again_when_the_server_has_ended(clients: Clients) -> None:
    """Its cache hands out the thread that was idle last, so many are taken at once."""
    threads: set[int] = set()
    results: set[tuple[int, int]] = set()

    def handler(request: trioreq.Request) -> bytes:
        threads.add(threading.get_ident())
        return b""

    async with serving(handler, workers=1) as server:
        await clients.connect(server.endpoints[0]).request(b"")

    def call_back() -> None:
        together.wait(5)
        trio.from_thread.check_cancelled()
        results.add((threading.get_ident(), trio.from_thread.run_sync(lambda: 7)))

    with trio.fail_after(5):
        while threads.isdisjoint(thread for thread, _ in results):  # it may not be idle yet
            together = threading.Barrier(30)
            async with trio.open_nursery() as nursery:
                for _ in range(together.parties):
                    nursery.start_soon(trio.to_thread.run_sync, call_back)
    assert {result for _, result in results} == {7}
