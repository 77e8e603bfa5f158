"""The message guard as a part of the server, with a kernel's counts that the test makes up.

Deterministic: no kernel, and an autojump clock. `tests/pure/test_message_guard.py` has the rule
itself, and `tests/hostile/test_endless_message.py` what becomes of libzmq and the kernel.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from support.outcomes import outcomes
from trio.testing import MockClock, wait_all_tasks_blocked

from trioreq._protocol import packs
from trioreq._protocol.connection_table import Connection
from trioreq._protocol.message_guard import EXTRA
from trioreq._transport.linux import KernelCounters
from trioreq.testing._libzmq import MemorySockets

SIZE = 1000  # bytes in a frame
ROOM = SIZE + EXTRA  # bytes in a message


class Counters(KernelCounters):
    """Each client has sent twice the room of a message since the last look, or nothing.

    Attributes:
        sending: The descriptors of those that send.
        looked: Called when it is asked how much of that libzmq has read: all of it.
    """

    def __init__(self) -> None:
        self.sending: set[int] = set()
        self.looked: Callable[[], None] = lambda: None
        self._counts: dict[int, int] = {}

    def memory(self) -> int:
        return 0

    def received(self, descriptor: int) -> int:
        if descriptor in self.sending:
            self._counts[descriptor] = self._counts.get(descriptor, 0) + 2 * ROOM
        return self._counts.get(descriptor, 0)

    def traffic(self, descriptor: int) -> tuple[int, int] | None:
        return None  # of which `test_unheard` makes up its own

    def read_by_owner(self, descriptor: int) -> tuple[int, int]:
        self.looked()
        count = self._counts.get(descriptor, 0)
        return count, count


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    counters = Counters()
    monkeypatch.setattr(MemorySockets, "counters", counters)
    return counters


async def test_g5_a_connection_that_sends_a_message_without_end_is_evicted(
    autojump_clock: MockClock, counters: Counters
) -> None:
    worker = Worker()
    async with serving(worker, max_message_size=SIZE) as net:
        endless, other = net.connect(socket_type="DEALER"), net.connect()
        endless.send(b"wait")
        await worker.log.wait("started wait")
        counters.sending.add(endless.connection.descriptor)
        with pytest.raises(trio.BrokenResourceError, match="shut the connection down"):
            await endless.receive()
        await worker.log.wait("cancelled wait: disconnected")
        assert await other.request(b"echo") == [b"re:echo"]
        assert outcomes(net.server) == {"cancelled_by_disconnect": 1, "replied": 1}
        assert net.server.statistics().evicted == 1


async def test_a_connection_whose_messages_end_is_not_evicted(
    autojump_clock: MockClock, counters: Counters
) -> None:
    async with serving(Worker(), max_message_size=SIZE) as net:
        client = net.connect(socket_type="DEALER")
        await client.request(b"echo")
        counters.sending.add(client.connection.descriptor)
        for _ in range(20):
            looked = trio.Event()
            counters.looked = looked.set
            await looked.wait()
            assert await client.request(b"echo") == [b"re:echo"]
        assert net.server.statistics().evicted == 0


async def test_a_connection_that_sends_empty_packs_is_not_evicted(
    autojump_clock: MockClock, counters: Counters
) -> None:
    """An empty pack is a whole message, though it has none for the server."""
    async with serving(Worker(), max_message_size=SIZE) as net:
        client = net.connect(socket_type="DEALER")
        await client.request(b"echo")
        counters.sending.add(client.connection.descriptor)
        for _ in range(20):
            looked = trio.Event()
            counters.looked = looked.set
            await looked.wait()
            client.send_raw(packs.HEAD.pack(packs.MAGIC, 0, 0))
            await wait_all_tasks_blocked()
        assert net.server.statistics().evicted == 0
        assert await client.request(b"echo") == [b"re:echo"]


async def test_messages_that_have_arrived_are_read_before_an_eviction(
    autojump_clock: MockClock, counters: Counters
) -> None:
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:  # watched, marked, and now suspected
            client.send(b"echo")

    async with serving(Worker(), max_message_size=SIZE) as net:
        client = net.connect(socket_type="DEALER")
        await client.request(b"echo")
        counters.looked = look
        counters.sending.add(client.connection.descriptor)
        assert await client.receive() == [b"re:echo"]
        assert net.server.statistics().evicted == 0


async def test_g5_nothing_is_kept_for_closed_connections(
    autojump_clock: MockClock, counters: Counters
) -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(thing, Connection) for thing in gc.get_objects())

    others = kept()  # of other tests
    async with serving(Worker()) as net:
        clients = [net.connect() for _ in range(20)]
        await trio.sleep(1)  # the guard has looked at them
        assert kept() == others + 20
        for client in clients:
            client.crash()
        await trio.sleep(1)
        assert kept() == others
