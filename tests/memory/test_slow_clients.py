"""Clients that do not read their replies. libzmq holds one message for each here."""

from __future__ import annotations

import math

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from support.serving import until
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._protocol.connection_table import Connection
from trioreq._server.slow_clients import CHECKS
from trioreq._transport.linux import KernelCounters
from trioreq._transport.outbox import Unsent
from trioreq.testing import MemoryClient, MemoryNetwork, _network


@pytest.fixture(autouse=True)
def _small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network, "IN_LIBZMQ", 1)


async def connect_slow(net: MemoryNetwork, requests: int) -> MemoryClient:
    """A client that has asked for so many replies, and reads none."""
    slow = net.connect(socket_type="DEALER")
    for number in range(requests):
        slow.send(b"echo%d" % number)
    slow.stall()
    await wait_all_tasks_blocked()
    return slow


async def test_replies_wait_in_order(autojump_clock: MockClock) -> None:
    async with serving(Worker(), heartbeat=None) as net:
        slow = await connect_slow(net, 5)
        assert net.server.statistics().replies_waiting == 4
        slow.resume()
        for number in range(5):
            assert await slow.receive() == [b"re:echo%d" % number]
        slow.send(b"echo5")
        assert await slow.receive() == [b"re:echo5"]
        stats = net.server.statistics()
        assert (stats.replies_sent, stats.replies_waiting, stats.replies_dropped) == (6, 0, 0)


async def test_statistics_may_be_taken_while_clients_become_slow(
    autojump_clock: MockClock,
) -> None:
    """In another thread; what the event loop does meanwhile is done at each step here."""

    class Waiting:
        def __len__(self) -> int:
            unsent[Connection(len(unsent), 0)] = Unsent(0)
            return 1

    async with serving(Worker(), heartbeat=None) as net:
        await connect_slow(net, 2)
        unsent = net.server._router.outbox.unsent
        for slow in unsent.values():
            slow.messages = Waiting()  # type: ignore[assignment]
        assert net.server.statistics().replies_waiting == 1
        assert len(unsent) == 2
        unsent.clear()


async def test_no_reply_overtakes_those_that_wait(autojump_clock: MockClock) -> None:
    """Libzmq has room again just when the next reply is ready."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"last":
            slow.resume()  # what libzmq holds goes out
            slow.stall()
        return b"re:" + request.body

    async with serving(handler, heartbeat=None) as net:
        slow = await connect_slow(net, 4)
        slow.resume()
        slow.send(b"last")
        slow.stall()
        await wait_all_tasks_blocked()
        assert net.server.statistics().replies_waiting == 2
        slow.resume()
        replies = [(await slow.receive())[0] for _ in range(5)]
        assert replies == [b"re:echo0", b"re:echo1", b"re:echo2", b"re:echo3", b"re:last"]


async def test_replies_that_wait_go_out_without_another_request(autojump_clock: MockClock) -> None:
    """Libzmq reports that it accepts more: replies do not wait for the next retry."""
    async with serving(Worker(), heartbeat=None) as net:
        slow = await connect_slow(net, 3)
        start = trio.current_time()
        slow.resume()
        for _ in range(3):
            await slow.receive()
        assert trio.current_time() == start


async def test_replies_that_wait_go_out_though_another_call_has_consumed_the_event(
    autojump_clock: MockClock,
) -> None:
    """The event is consumed by any call on the socket, such as one that sends."""
    async with serving(Worker(), heartbeat=None) as net:
        slow = await connect_slow(net, 3)
        slow.resume()
        net.server._router.readable()
        with trio.fail_after(1):
            for number in range(3):
                assert await slow.receive() == [b"re:echo%d" % number]


async def test_a_client_that_reads_nothing_is_evicted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker(), heartbeat=None, stall_timeout=5) as net:
        start = trio.current_time()
        slow = await connect_slow(net, 4)
        other = net.connect()
        other.send(b"wait")
        with trio.fail_after(10):
            await until(lambda: net.server.statistics().evicted_slow == 1)
        assert 5 <= trio.current_time() - start < 5.5
        stats = net.server.statistics()
        assert (stats.evicted_slow, stats.evicted) == (1, 1)
        assert (stats.replies_sent, stats.replies_waiting, stats.replies_dropped) == (1, 0, 3)
        assert stats.in_flight == 1
        assert not net.held_for(slow)
    told = [record.message for record in caplog.records if "evicted" in record.message]
    assert len(told) == 1
    assert "it has read none of its replies for 5" in told[0]


async def test_a_client_that_reads_slowly_is_not_evicted(autojump_clock: MockClock) -> None:
    async with serving(Worker(), heartbeat=None, stall_timeout=5) as net:
        slow = await connect_slow(net, 6)
        for _ in range(6):
            await trio.sleep(4)
            slow.resume()  # libzmq sends the one message that it holds,
            slow.stall()  # and accepts another
            await slow.receive()
        await trio.sleep(20)
        stats = net.server.statistics()
        assert (stats.evicted_slow, stats.replies_waiting, stats.replies_dropped) == (0, 0, 0)


@pytest.mark.parametrize("pause", [2.6, 3.5, 4.9])
async def test_a_client_is_evicted_only_if_it_pauses_for_all_of_the_time(
    autojump_clock: MockClock, pause: float
) -> None:
    """It reads a part of a large reply after each pause, which only the kernel counts."""
    last = 30.0  # when it stops to read

    class Counters(KernelCounters):
        def __init__(self) -> None:
            self.began = trio.current_time()

        def acked(self, descriptor: int) -> int:
            return int(min(trio.current_time() - self.began, last) / pause)

    async with serving(Worker(), heartbeat=None, stall_timeout=5) as net:
        counters = net.server._slow_clients._counters = Counters()
        await connect_slow(net, 4)
        await trio.sleep(last)
        assert net.server.statistics().evicted_slow == 0
        with trio.fail_after(10):
            await until(lambda: net.server.statistics().evicted_slow == 1)
        read = counters.began + last // pause * pause
        assert 5 <= trio.current_time() - read < 5 * (1 + 2 / CHECKS)


async def test_without_a_limit_replies_wait_as_long_as_the_connection_lives(
    autojump_clock: MockClock,
) -> None:
    async with serving(Worker(), heartbeat=None, stall_timeout=None) as net:
        slow = await connect_slow(net, 4)
        await trio.sleep(1000)
        assert net.server.statistics().replies_waiting == 3
        slow.crash()
        await wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert (stats.replies_waiting, stats.replies_dropped, stats.evicted_slow) == (0, 3, 0)


async def test_a_drain_waits_for_slow_clients(autojump_clock: MockClock) -> None:
    async with serving(Worker(), heartbeat=None) as net:
        slow = await connect_slow(net, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.server.drain, math.inf)
            await trio.sleep(3)
            assert net.server.statistics().replies_waiting == 2
            slow.resume()
            for number in range(3):
                assert await slow.receive() == [b"re:echo%d" % number]


async def test_replies_that_wait_at_the_end_are_dropped_and_counted(
    autojump_clock: MockClock,
) -> None:
    async with serving(Worker(), heartbeat=None) as net:
        await connect_slow(net, 4)
        server = net.server
        await server.drain(1)
        assert server.statistics().replies_dropped == 3
