"""Blocks of `finishing`, in memory, over tcp and over ipc.

Everything waits for an event. Where nothing happens, the test waits for `net.brief`, in memory on a
clock that jumps.
"""

from __future__ import annotations

import time

import pytest
import trio
from support.handlers import STUBBORN, Log
from support.nets import Net
from support.outcomes import outcomes
from support.serving import until

import trioreq
from trioreq.testing import sleep


class Finishing:
    """A handler in whose block `go` is awaited; it says how the block ends, and what follows."""

    def __init__(self, limit: float = STUBBORN) -> None:
        self.log = Log()
        self.go = trio.Event()
        self.limit = limit

    async def __call__(self, request: trioreq.Request) -> bytes:
        if request.body == b"echo":
            return b"echo"
        try:
            async with trioreq.finishing(limit=self.limit):
                self.log.add("began")
                try:
                    await self.go.wait()
                except trio.Cancelled:
                    self.log.add(f"cut: {request.cancel_reason}")
                    raise
                self.log.add(f"done: {request.cancel_reason}")
            self.log.add("left")
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.log.add("cancelled")
            raise
        return b"reply"


class PlainFinishing:
    """The same in a plain function, which asks until it is told, in steps of `step` seconds."""

    def __init__(self, step: float, limit: float = STUBBORN) -> None:
        self.step = step
        self.log = Log()
        self.go = False
        self.limit = limit

    def __call__(self, request: trioreq.Request) -> bytes:
        try:
            with trioreq.finishing(limit=self.limit):
                self.log.add("began")
                before = time.monotonic()
                while not self.go and time.monotonic() < before + STUBBORN:
                    try:
                        trioreq.check_cancelled()
                    except trioreq.RequestCancelled:
                        self.log.add(f"cut: {request.cancel_reason}")
                        raise
                    sleep(self.step)
                self.log.add(f"done: {request.cancel_reason}")
            self.log.add("left")
            trioreq.check_cancelled()
        except trioreq.RequestCancelled:
            self.log.add("cancelled")
            raise
        return b"reply"


DONE = ["began", "done: None", "left"]


def finished(reason: str) -> list[str]:
    return ["began", f"done: {reason}", "left", "cancelled"]


def cut(reason: str) -> list[str]:
    return ["began", f"cut: {reason}", "cancelled"]


@pytest.mark.slow
async def test_g1_a_disconnect_does_not_reach_the_block_and_no_reply_is_sent(net: Net) -> None:
    handler = Finishing()
    server = await net.serve(handler)
    client = await net.connect_mortal()
    await client.send(b"x")
    await handler.log.wait("began")
    assert server.statistics().finishing == 1
    await client.crash()
    await until(lambda: server.statistics().connections == 0)
    assert outcomes(server) == {"cancelled_by_disconnect": 1}
    stats = server.statistics()
    assert (stats.finishing, stats.in_flight, stats.running) == (1, 0, 1)
    handler.go.set()
    await handler.log.wait("cancelled")
    assert handler.log.entries == finished("disconnected")
    await until(lambda: server.statistics().running == 0)
    assert server.statistics().finishing == 0
    assert not net.handed_over
    assert not net.refused


async def test_the_limit_reaches_the_block(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    handler = Finishing(limit=net.brief)
    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    await trio.sleep(2 * net.brief)  # before it is cancelled, it has no limit
    assert handler.log.entries == ["began"]
    before = trio.current_time()
    await client.close()
    await handler.log.wait("cancelled")
    assert handler.log.entries == cut("disconnected")
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
    assert "a finishing block has not ended within its limit of" in caplog.text


async def test_g7_a_superseded_block_goes_on_and_its_reply_is_not_the_next_ones(net: Net) -> None:
    handler = Finishing()
    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    await client.send(b"echo")
    assert await client.receive() == [b"echo"]
    assert handler.log.entries == ["began"]
    handler.go.set()
    await handler.log.wait("cancelled")
    assert handler.log.entries == finished("superseded")
    assert net.handed_over == [b"echo"]
    assert outcomes(server) == {"superseded": 1, "replied": 1}


async def test_a_deadline_does_not_reach_the_block(net: Net) -> None:
    handler = Finishing()
    server = await net.serve(handler, timeout=net.brief)
    client = await net.connect()
    await client.send(b"x")
    assert (await client.receive())[1] == b"timed-out"
    assert handler.log.entries == ["began"]
    handler.go.set()
    await handler.log.wait("cancelled")
    assert handler.log.entries == finished("deadline")
    assert outcomes(server) == {"timed_out": 1}


async def test_a_clients_cancel_does_not_reach_the_block(net: Net) -> None:
    handler = Finishing()
    server = await net.serve(handler)
    async with net.open_client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"x")
            await handler.log.wait("began")
            nursery.cancel_scope.cancel()
        await until(lambda: outcomes(server) == {"cancelled_by_client": 1})
        handler.go.set()
        await handler.log.wait("cancelled")
    assert handler.log.entries == finished("cancelled")


async def test_a_block_whose_request_does_not_end_is_like_other_code(net: Net) -> None:
    handler = Finishing()
    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    handler.go.set()
    assert await client.receive() == [b"reply"]
    assert handler.log.entries == DONE


async def test_a_server_that_stops_waits_for_the_block(net: Net) -> None:
    handler = Finishing()
    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(net.stop)
        assert (await client.receive())[1] == b"shutting-down"
        assert handler.log.entries == ["began"]
        handler.go.set()
    assert handler.log.entries == finished("shutdown")


async def test_a_server_that_stops_waits_no_longer_than_the_limit(net: Net) -> None:
    handler = Finishing(limit=net.brief)
    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    before = trio.current_time()
    await net.stop()
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
    assert handler.log.entries == cut("shutdown")


async def test_a_drain_that_is_over_reaches_the_block_at_once(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Finishing(limit=1000)
    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    before = trio.current_time()
    await server.drain(net.brief)
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
    assert handler.log.entries == cut("shutdown")
    assert "1 finishing blocks had not ended when the drain was over" in caplog.text


@pytest.mark.parametrize("plain", [False, True])
async def test_a_drain_waits_for_a_block_whose_request_has_ended(net: Net, *, plain: bool) -> None:
    handler = PlainFinishing(net.brief / 50) if plain else Finishing()
    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    await client.close()
    await until(lambda: server.statistics().in_flight == 0)
    drained = trio.Event()

    async def drain() -> None:
        await server.drain(1e4)
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await trio.sleep(net.brief)
        assert not drained.is_set()
        if isinstance(handler, PlainFinishing):
            handler.go = True
        else:
            handler.go.set()
    assert handler.log.entries[:3] == finished("disconnected")[:3]


# Plain functions.


async def test_check_cancelled_is_quiet_in_the_block(net: Net) -> None:
    handler = PlainFinishing(net.brief / 50)
    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    await client.close()
    await until(lambda: outcomes(server) == {"cancelled_by_disconnect": 1})
    await trio.sleep(net.brief)
    assert server.statistics().finishing == 1
    handler.go = True
    await handler.log.wait("cancelled")
    assert handler.log.entries == finished("disconnected")
    await until(lambda: server.statistics().running == 0)
    assert server.statistics().finishing == 0
    assert not net.handed_over


async def test_check_cancelled_raises_when_the_limit_is_over(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    handler = PlainFinishing(net.brief / 50, limit=net.brief)
    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    await client.close()
    await until(lambda: outcomes(server) == {"cancelled_by_disconnect": 1})
    before = trio.current_time()
    await handler.log.wait("cancelled")
    most = net.brief + 2 * handler.step + net.tolerance
    assert net.brief / 2 <= trio.current_time() - before <= most
    assert handler.log.entries == cut("disconnected")
    assert caplog.text.count("a finishing block has not ended within its limit of") == 1


async def test_a_drain_that_is_over_reaches_a_plain_function(net: Net) -> None:
    handler = PlainFinishing(net.brief / 50, limit=1000)
    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    await server.drain(0)
    await handler.log.wait("cancelled")
    assert handler.log.entries == cut("shutdown")


async def test_a_server_that_stops_waits_for_a_plain_function_in_the_block(net: Net) -> None:
    handler = PlainFinishing(net.brief / 50)
    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    stopped = trio.Event()

    async def stop() -> None:
        await net.stop()
        stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        assert (await client.receive())[1] == b"shutting-down"
        await trio.sleep(net.brief)
        assert not stopped.is_set()
        handler.go = True
    assert handler.log.entries[:2] == finished("shutdown")[:2]
    await handler.log.wait("cancelled")


async def test_a_server_that_stops_waits_for_a_plain_function_within_the_limit(net: Net) -> None:
    handler = PlainFinishing(net.brief / 50, limit=net.brief)
    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    await handler.log.wait("began")
    with trio.fail_after(net.brief + handler.step + net.tolerance):
        await net.stop()
    await handler.log.wait("cancelled")
    assert handler.log.entries == cut("shutdown")
