"""When to look for messages that libzmq keeps, and at which connections.

`message_guard` judges messages without end, and `unheard` connections that are not heard at all.
There is no event to wait for: neither libzmq nor the kernel tells what is kept. So this looks
now and then, while any client is connected: at all connections if the process's memory has grown,
else at some in turn, since what is gathered may go into memory that C has kept from earlier.
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

PAUSE = 0.25  # seconds between two looks
BRIEF = 0.02  # seconds instead, while the process's memory grows
GROWTH = 4 * 1024 * 1024  # bytes of growth that are worth looking at all connections
SLICE = 100  # connections to look at in one step, one or two microseconds each
COMPLETE = 0.1  # seconds that the ZAP handler may wait for the rest of a handshake
UNHEARD = (
    "its messages are not delivered, since another connection has its routing id, or had it when "
    "this one came; if that was its own, whose line was cut, it is heard once it has connected "
    "again; else give each client an id of its own, or none"
)


class Guard:
    """Evicts connections that send a message without end, or that are not heard.

    Args:
        router: The ROUTER, whose connections these are.
        counters: What the kernel counts of them.
        unheard: Judges the connections from which nothing was read.
        catch_up: Reads what has come; returns whether that was all.
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
        """Look, until cancelled."""
        router, counters = self._router, self._counters
        lowest = counters.memory()
        pause = PAUSE
        some: Sequence[Connection] = ()
        others = iter(router.connections)  # whose turn is still to come
        while True:
            if not len(router):
                some, others = (), iter(())  # keep nothing of connections that are gone
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
                pause += 10 * (trio.current_time() - begun)  # not all the time, with many
                await trio.lowlevel.checkpoint()

    async def wait_complete(self) -> None:
        """Before the ZAP handler replies, wait for the last commands of handshakes; not for long.

        Only while a connection has a routing id of its own: without one nothing is ignored.
        """
        if not self._router.own_routing_ids:
            return
        end = trio.current_time() + COMPLETE
        pause = COMPLETE / 256
        while incomplete := self.look_at_handshakes():
            if trio.current_time() >= end:
                for connection in incomplete:
                    connection.slow = True  # no other waits for it again
                return
            await trio.sleep(pause)  # nothing tells when it has come: libzmq reads it
            pause *= 2

    def look_at_handshakes(self) -> list[Connection]:
        """Record what handshakes have taken; returns those that are about to be complete."""
        now = trio.current_time()
        incomplete = []
        for connection in islice(self._router.handshakes.newest(), SLICE):
            received = self._counters.received(connection.descriptor)
            if self._unheard.asks(connection, received, now) and not connection.slow:
                incomplete.append(connection)
        return incomplete

    @trio.lowlevel.enable_ki_protection  # what is read may be answered at once
    def look(self, some: Sequence[Connection]) -> None:
        """Look at some connections, and evict those whose message has no end, or is not heard."""
        guard, counters = self._router.guard, self._counters
        self._router.read_monitor()
        now = trio.current_time()
        suspects = []
        mute = []
        for connection in some:
            if self._is_mute(connection, now):
                mute.append(connection)
            # If it has gone just now, what is counted is another's: `evict` will find that out.
            if not connection.disconnected and guard.is_notable(
                connection, counters.received(connection.descriptor)
            ):
                least, most = counters.read_by_owner(connection.descriptor)
                if guard.weigh(connection, least, most, now):
                    suspects.append(connection)
        if suspects or mute:
            dry = self._catch_up()
            for connection in suspects:
                if guard.is_endless(connection, len(self._router), dry=dry):
                    self._router.evict(
                        connection,
                        f"it has sent more than {guard.room} bytes and no whole message; if it is "
                        "honest, raise max_message_size",
                    )
            for connection in mute:
                if dry and connection.peer is None:
                    self._router.evict(connection, UNHEARD)

    def _is_mute(self, connection: Connection, now: float) -> bool:
        if connection.disconnected or connection.peer is not None:
            return False
        if connection.silence is None and connection in self._router.handshakes:
            return False  # its handshake may be in progress
        traffic = self._counters.traffic(connection.descriptor)
        return traffic is not None and self._unheard.is_mute(connection, *traffic, now)
