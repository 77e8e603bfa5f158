"""Checks connections for messages that libzmq does not deliver, and evicts their senders.

`message_guard` decides about messages without end, and `unheard` about connections that are not
heard: libzmq delivers none of their messages. There is no event to wait for: neither libzmq nor the
kernel reports what libzmq holds. So the check runs at intervals, while any client is connected:
over all connections if the memory of the process has grown, otherwise over some in turn, since a
message may also grow in memory that the C allocator has kept from earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NoReturn

import trio

from .._protocol.connection_table import Connection
from .._protocol.unheard import UnheardGuard
from .._transport.linux import KernelCounters
from .._transport.router import Router

PAUSE = 0.25  # seconds between two checks
BRIEF = 0.02  # seconds instead, while the memory of the process grows
GROWTH = 4 * 1024 * 1024  # bytes of growth after which all connections are checked
SLICE = 100  # connections to check in one step, one or two microseconds each
COMPLETE = 0.1  # seconds that the ZAP handler may wait for the rest of a handshake
UNHEARD = (
    "its messages are not delivered, since another connection has the same routing id, or had it "
    "when this one was accepted; if that was its own earlier connection, it is heard after it has "
    "connected again; otherwise give each client its own routing id, or none"
)


class Guard:
    """Evicts connections that send a message without end, or that are not heard.

    Args:
        router: The ROUTER and its connections.
        counters: The kernel's counters of connections.
        unheard: Decides about connections from which nothing was read.
        catch_up: Reads the messages that have arrived; returns whether those were all.
    """

    def __init__(
        self,
        router: Router,
        counters: KernelCounters,
        unheard: UnheardGuard,
        catch_up: Callable[[], bool],
    ) -> None:
        self._router = router
        self._counters = counters
        self._unheard = unheard
        self._catch_up = catch_up

    async def run(self) -> NoReturn:
        """Check, until cancelled."""
        router, counters = self._router, self._counters
        lowest = counters.memory()
        pause = PAUSE
        some: Sequence[Connection] = ()
        others = iter(router.connections)  # not checked yet in this round
        while True:
            if not len(router):
                some, others = (), iter(())  # keep no reference to connections that have closed
            await router.wait_occupied()
            await trio.sleep(pause)
            memory = counters.memory()
            grown = memory >= lowest + GROWTH
            lowest = memory if grown else min(lowest, memory)
            pause = BRIEF if grown else PAUSE
            for _ in range(2 + len(router) // SLICE if grown else 1):
                begun = trio.current_time()
                some = tuple(islice(others, SLICE))
                self.look(some)
                if len(some) < SLICE:
                    others = iter(router.connections)
                # With many connections, check them for a tenth of the time at most.
                pause += 10 * (trio.current_time() - begun)
                await trio.lowlevel.checkpoint()

    async def wait_complete(self) -> None:
        """Before the ZAP handler replies, wait a short time for the last commands of handshakes.

        Only while a connection has an explicit routing id: otherwise libzmq ignores no connection.
        """
        if not self._router.own_routing_ids:
            return
        end = trio.current_time() + COMPLETE
        pause = COMPLETE / 256
        while incomplete := self.look_at_handshakes():
            if trio.current_time() >= end:
                for connection in incomplete:
                    connection.slow = True  # it is not waited for again
                return
            await trio.sleep(pause)  # there is no event: libzmq reads the command
            pause *= 2

    def look_at_handshakes(self) -> list[Connection]:
        """Record what handshakes have received; returns those that are almost complete."""
        now = trio.current_time()
        incomplete = []
        for connection in islice(self._router.handshakes.newest(), SLICE):
            received = self._counters.received(connection.descriptor)
            if self._unheard.asks(connection, received, now) and not connection.slow:
                incomplete.append(connection)
        return incomplete

    @trio.lowlevel.enable_ki_protection  # it may send replies
    def look(self, some: Sequence[Connection]) -> None:
        """Check some connections; evict those with a message without end, or that are not heard."""
        guard, counters = self._router.guard, self._counters
        self._router.read_monitor()
        now = trio.current_time()
        suspects = []
        unheard = []
        for connection in some:
            if self._is_unheard(connection, now):
                unheard.append(connection)
            # If it has just disconnected, these are the counters of the next connection on its
            # descriptor. `evict` reads the monitor, and then does nothing.
            if not connection.disconnected and guard.is_notable(
                connection, counters.received(connection.descriptor)
            ):
                least, most = counters.read_by_owner(connection.descriptor)
                if guard.weigh(connection, least, most, now):
                    suspects.append(connection)
        if suspects or unheard:
            dry = self._catch_up()
            for connection in suspects:
                if guard.is_endless(connection, len(self._router), dry=dry):
                    self._router.evict(
                        connection,
                        f"it has sent more than {guard.room} bytes and no complete message; if it "
                        "is legitimate, raise max_message_size",
                    )
            for connection in unheard:
                if dry and connection.peer is None:
                    self._router.evict(connection, UNHEARD)

    def _is_unheard(self, connection: Connection, now: float) -> bool:
        if connection.disconnected or connection.peer is not None:
            return False
        if connection.silence is None and connection in self._router.handshakes:
            return False  # its handshake may be in progress
        traffic = self._counters.traffic(connection.descriptor)
        return traffic is not None and self._unheard.is_unheard(connection, *traffic, now)
