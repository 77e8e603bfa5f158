"""Evicts clients that do not read their replies.

Replies that libzmq does not accept for such a client wait in the outbox: none is lost while its
connection is open. libzmq signals on the ROUTER when it accepts more, and each read retries them.
Another call on the socket can consume that signal, so this task retries too, at intervals while
replies wait. It evicts a client that has read nothing for `stall_timeout`, or for which more than
`send_queue` replies wait.
"""

from __future__ import annotations

from typing import Final, NoReturn

import trio

from .._protocol.connection_table import Connection
from .._transport.linux import KernelCounters
from .._transport.outbox import Unsent
from .._transport.router import Router

PAUSE: Final = 0.02  # seconds between two retries
CHECKS: Final = 8  # in `stall_timeout`: a client is evicted at most an eighth of it too late


class SlowClients:
    """Watches the connections whose messages wait in the outbox.

    Args:
        router: The ROUTER and its connections.
        counters: The kernel's counters of connections, where the system has them.
        stall_timeout: Seconds that a client may read nothing; None for no limit.
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
        """Whether a client has read nothing for `stall_timeout`.

        libzmq accepts more when it has sent half of its own queue, which can take long with large
        replies and a slow network. So bytes that the kernel has delivered count as progress too.
        """
        now, timeout = trio.current_time(), self._stall_timeout
        if timeout is None or now < unsent.checked + timeout / CHECKS:
            return False
        unsent.checked = now
        acked = 0 if self._counters is None else self._counters.acked(connection.descriptor)
        if acked != unsent.acked:
            unsent.since, unsent.acked = now, acked
        return now - unsent.since >= timeout
