"""When to look for a message without end, and at which connections; `message_guard` judges.

There is no event to wait for: neither libzmq nor the kernel tells what is gathered. So this looks
now and then, while any client is connected: at all connections if the process's memory has grown,
else at some in turn, since what is gathered may go into memory that C has kept from earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NoReturn

import trio

from .._protocol.connection_table import Connection
from .._transport.linux import KernelCounters
from .._transport.router import Router

PAUSE = 0.25  # seconds between two looks
BRIEF = 0.02  # seconds instead, while the process's memory grows
GROWTH = 4 * 1024 * 1024  # bytes of growth that are worth looking at all connections
SLICE = 100  # connections to look at in one step, one or two microseconds each


class Guard:
    """Evicts connections that send a message without end.

    Args:
        router: The ROUTER, whose connections these are.
        counters: What the kernel counts of them.
        catch_up: Reads what has come; returns whether that was all.
    """

    def __init__(
        self, router: Router, counters: KernelCounters, catch_up: Callable[[], bool]
    ) -> None:
        self._router = router
        self._counters = counters
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

    @trio.lowlevel.enable_ki_protection  # what is read may be answered at once
    def look(self, some: Sequence[Connection]) -> None:
        """Look at some connections, and evict those whose message has no end."""
        guard, counters = self._router.guard, self._counters
        self._router.read_monitor()
        now = trio.current_time()
        suspects = []
        for connection in some:
            # If it has gone just now, what is counted is another's: `evict` will find that out.
            if not connection.gone and guard.is_notable(
                connection, counters.received(connection.descriptor)
            ):
                least, most = counters.read_by_owner(connection.descriptor)
                if guard.weigh(connection, least, most, now):
                    suspects.append(connection)
        if suspects:
            dry = self._catch_up()
            for connection in suspects:
                if guard.is_endless(connection, len(self._router), dry=dry):
                    self._router.evict(
                        connection,
                        f"it has sent more than {guard.room} bytes and no whole message; if it is "
                        "honest, raise max_message_size",
                    )
