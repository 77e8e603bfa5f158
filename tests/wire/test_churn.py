"""Many connections a second: none is taken for another, and nothing is left of any.

Time is real, and the order of things the machine's. What makes it deterministic: nothing is said
of the order, only of the end, and of who had said what. The number of peers is fixed; each goes
its way by its number; the end is when the server reports no connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import trio
import zmq
from support.handlers import Log
from support.serving import serving, until

import trioreq
from harness import churn
from harness.outcomes import ended
from harness.zmtp import GARBAGE, GREETING, LIMIT, RawPeer, message

pytestmark = pytest.mark.slow

SLOTS = 32


class Zoo:
    """Peers of all kinds that send one request each, and die of it or leave.

    Each thread has a Context of its own, for those that are libzmq's.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._contexts: list[zmq.Context[zmq.Socket[bytes]]] = []

    def live(self, endpoint: str, number: int) -> None:
        address = churn.new_address()
        if number % 4 == 0:
            self._live_in_zmq(endpoint, address.encode(), asks=number % 8 == 0)
        else:
            with RawPeer(endpoint, address) as peer:
                self._live_by_hand(peer, address.encode(), number % 8)

    def close(self) -> None:
        """Let what was sent go out, and give all back."""
        for context in self._contexts:
            context.destroy(linger=round(LIMIT * 1000))

    def _live_in_zmq(self, endpoint: str, name: bytes, *, asks: bool) -> None:
        if not hasattr(self._local, "context"):
            self._local.context = zmq.Context()
            self._contexts.append(self._local.context)
        with self._local.context.socket(zmq.REQ) as socket:
            socket.linger = socket.rcvtimeo = round(LIMIT * 1000)
            socket.connect(endpoint)
            socket.send(b"echo " + name if asks else b"wait " + name)
            if asks:
                assert socket.recv() == b"echo " + name

    def _live_by_hand(self, peer: RawPeer, name: bytes, way: int) -> None:
        if way == 1:  # goes before the handshake
            peer.send(GREETING)
            peer.reset()
            return
        peer.shake_hands(b"REQ")
        match way:
            case 2:
                peer.send(message(b"", b"echo " + name))
                assert [peer.read_frame(), peer.read_frame()] == [b"", b"echo " + name]
            case 3 | 5:
                peer.send(message(b"", b"wait " + name))
                peer.reset()
            case 6:
                peer.send(message(b"", b"wait " + name) + GARBAGE)
            case _:
                peer.send(message(b"", b"wait " + name))


async def test_two_thousand_killed_clients_leave_no_resources_behind(addr: str) -> None:
    heard: dict[int, bytes] = {}
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        what, name = request.body.split()
        assert heard.setdefault(request.client.id, name) == name
        if what == b"wait":
            log.add("waits")
            await trio.sleep_forever()
        return request.body

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with serving(handler, addr, max_in_flight=SLOTS) as server:
        endpoint = server.endpoints[0]

        def at_rest() -> bool:
            stats = server.statistics()
            return not (stats.connections or stats.in_flight or stats.running)

        own_tasks = tasks()
        # What libzmq opens for the first connection stays.
        with await trio.to_thread.run_sync(RawPeer, endpoint) as first:
            await trio.to_thread.run_sync(first.shake_hands)
            first.send(message(b"", b"wait first") * SLOTS)
            await log.wait("waits", SLOTS)
        await until(lambda: at_rest() and tasks() == own_tasks)
        own_descriptors = descriptors()
        zoo = Zoo()
        try:
            await trio.to_thread.run_sync(churn.load, endpoint, 2000, zoo.live)
        finally:
            await trio.to_thread.run_sync(zoo.close)
        await until(at_rest)
        # Descriptors are closed, and late messages read, a moment after the disconnect is reported.
        await until(lambda: descriptors() <= own_descriptors and tasks() == own_tasks)
        stats = server.statistics()
        assert stats.requests == ended(asdict(stats)) + stats.in_flight
        assert stats.connections == stats.in_flight == stats.waiting == 0
        assert stats.replied == stats.replies_sent == 500
        assert stats.failed == stats.malformed == stats.overloaded == stats.timed_out == 0
        assert stats.cancelled_by_disconnect + stats.never_started >= 750  # the reset may be lost
    assert len(set(heard.values())) == len(heard)


async def test_each_message_is_its_senders(
    addr: str, record_property: Callable[[str, object], None]
) -> None:
    """At thousands of connections a second, on few descriptors, under routing ids used again."""
    elsewhere: list[trioreq.Peer] = []

    async def handler(request: trioreq.Request) -> bytes:
        if request.client.address != request.body.decode() and addr.startswith("tcp"):
            elsewhere.append(request.client)
        return request.body

    connections = 3000
    with churn.watched() as ledger:
        async with serving(handler, addr) as server:
            endpoint = server.endpoints[0]
            took = await trio.to_thread.run_sync(churn.load, endpoint, connections)
            await until(lambda: server.statistics().connections == 0)
            await until(lambda: server.statistics().in_flight == 0)
            stats = server.statistics()
    figures = f"{connections / took:.0f} connections a second; {ledger}"
    record_property("attribution", figures)
    print(figures)
    assert ledger.messages >= 5000
    assert ledger.wrong == ledger.wrongly_late == 0
    assert not elsewhere
    assert stats.requests == ended(asdict(stats)) == ledger.messages + ledger.late
    assert stats.unattributed == ledger.late
