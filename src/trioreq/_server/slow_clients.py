"""Evicts clients that do not read their replies.

What libzmq does not accept for such a client waits in the outbox: no reply is lost while its
connection lives. libzmq reports when it accepts more, as an event on the ROUTER, and each read
follows that up. Another call on the socket can consume the event, so this tries again at intervals
while anything waits. It closes the connection of a client that has accepted nothing for too long,
or has too much waiting.
"""

from __future__ import annotations

from typing import Final, NoReturn

import trio

from .._protocol.connection_table import Connection
from .._transport.linux import KernelCounters
from .._transport.outbox import Unsent
from .._transport.router import Router

PAUSE: Final = 0.02  # seconds between two tries


class SlowClients:
    """Watches the connections whose messages wait in the outbox.

    Args:
        router: The ROUTER, whose connections these are.
        counters: What the kernel counts of them, if anything.
        stall_timeout: Seconds that a client may accept nothing; None for no limit.
    """

    def __init__(
        self, router: Router, counters: KernelCounters | None, stall_timeout: float | None
    ) -> None:
        self._router = router
        self._counters = counters
        self._stall_timeout = stall_timeout
        self.evicted = 0

    async def run(self) -> NoReturn:
        """Watch, until cancelled."""
        outbox = self._router.outbox
        while True:
            await outbox.has_unsent.wait_value(True)
            await trio.sleep(PAUSE)
            self._look()

    @trio.lowlevel.enable_ki_protection
    def _look(self) -> None:
        outbox = self._router.outbox
        outbox.retry()
        for connection, unsent in tuple(outbox.unsent.items()):
            if unsent.overflowed:
                self._evict(connection, "it does not read its replies, and send_queue is full")
            elif self._has_stalled(connection, unsent):
                seconds = trio.current_time() - unsent.since
                self._evict(connection, f"it has read none of its replies for {seconds:.1f} s")

    def _evict(self, connection: Connection, reason: str) -> None:
        if not connection.disconnected:
            self.evicted += 1
            self._router.evict(connection, reason)

    def _has_stalled(self, connection: Connection, unsent: Unsent) -> bool:
        """Whether a client has accepted nothing for too long.

        libzmq accepts more when half of its own queue has gone out, which can take long with large
        replies and a slow network. So what the kernel has sent meanwhile counts too.
        """
        if self._stall_timeout is None:
            return False
        waited = trio.current_time() - unsent.since
        acked = 0 if self._counters is None else self._counters.acked(connection.descriptor)
        if waited >= self._stall_timeout:
            if acked == unsent.acked:
                return True
            unsent.since, unsent.acked = trio.current_time(), None
        elif waited >= self._stall_timeout / 2 and unsent.acked is None:
            unsent.acked = acked
        return False
