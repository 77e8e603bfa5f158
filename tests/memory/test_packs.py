"""What becomes of packs that go nowhere."""

from __future__ import annotations

import trio
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._protocol import packs
from trioreq._protocol.envelope import REQUEST, Header
from trioreq.testing import MemoryNetwork


def pack(messages: int, body: bytes = b"echo", first: int = 1) -> bytes:
    numbers = range(first, first + messages)
    requests = [(Header(REQUEST, number).pack(), b"", body) for number in numbers]
    return packs.pack(requests, packs.MAX_SIZE, packs.MAX_SIZE)[0][0]


async def test_each_reply_of_a_pack_that_is_dropped_is_counted(autojump_clock: MockClock) -> None:
    async with serving(Worker(), send_queue=1, heartbeat=None) as net:
        client = net.connect(socket_type="DEALER")
        client.connection.to_client.block("test")
        client.send_raw(pack(3))  # its replies fill the queue
        await wait_all_tasks_blocked()
        client.send_raw(pack(2))
        await wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert stats.replied == 5
        assert (stats.replies_sent, stats.replies_dropped) == (3, 2)


async def most_in_a_pass(net: MemoryNetwork, requests: int) -> int:
    """How many are read while another task waits for its turn, until so many are read in all."""
    most = 0
    while (before := net.server.statistics().requests) < requests:
        await trio.lowlevel.checkpoint()
        most = max(most, net.server.statistics().requests - before)
    return most


async def test_g6_packs_are_read_few_at_a_time(autojump_clock: MockClock) -> None:
    """One batch of them has no more requests than one of other messages."""
    async with serving(Worker(), max_in_flight=1, max_queued_per_client=0) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"wait")
        await wait_all_tasks_blocked()
        before = net.server.statistics().requests
        for number in range(40):
            client.send_raw(pack(packs.MAX_MESSAGES, first=1 + packs.MAX_MESSAGES * number))
        assert await most_in_a_pass(net, before + 40 * packs.MAX_MESSAGES) <= 4 * packs.MAX_MESSAGES


async def test_g6_one_task_reads_however_many_have_been_readers(
    autojump_clock: MockClock,
) -> None:
    """Where all that is read is refused at once, each of them would read a batch in each pass."""
    async with serving(Worker(), max_in_flight=1000) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(
            pack(packs.MAX_MESSAGES, b"wait")
        )  # a handler that waits needs a new reader
        for _ in range(200):
            client.send_raw(pack(packs.MAX_MESSAGES, b"under a name that is in flight"))
        assert await most_in_a_pass(net, 201 * packs.MAX_MESSAGES) <= 4 * packs.MAX_MESSAGES


async def test_g1_nothing_of_a_pack_is_sent_after_the_disconnect(
    autojump_clock: MockClock,
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"go":
            client.crash()
        return b""

    async with serving(handler) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(pack(3, b"go"))
        await wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert stats.requests == 3
        assert stats.replies_sent == 0
        assert net.sent_to(client) == []
