"""Routing ids of closed connections that libzmq may still hold.

libzmq ignores a new connection for as long as it lives, if its routing id is not free. It frees the
routing id of a closed connection some time after it has reported the disconnect: its I/O thread
notifies the ROUTER, the ROUTER has read all messages of the connection and confirms, and the I/O
thread confirms that. A new connection may ask to be accepted before the first of these steps, if
the machine is busy.
"""

from __future__ import annotations

import math
from errno import EHOSTUNREACH
from typing import Final

import trio

from .zsocket import ZSocket

MOMENT: Final = 0.0002  # seconds; far longer than the I/O thread takes from one call to the next
LIMIT: Final = 0.1  # seconds that a routing id is waited for
PROBE: Final = (b"",)


class RoutingIds:
    """The routing ids that clients have chosen, from their disconnect until they are free.

    Args:
        router: The ROUTER.
    """

    def __init__(self, router: ZSocket) -> None:
        self._router = router
        self._closed: dict[bytes, float | None] = {}  # when it was first checked
        self._unreachable: dict[bytes, float] = {}  # since when

    def closed(self, routing_id: bytes) -> None:
        """The connection with this routing id was disconnected."""
        self._closed[routing_id] = None
        self._unreachable.pop(routing_id, None)

    def heard(self, routing_id: bytes) -> None:
        """A message of another connection with this routing id was read."""
        self._closed.pop(routing_id, None)

    def all_free(self) -> bool:
        """Whether all are free. The caller has read the ROUTER until it was empty.

        A message is sent to each: if libzmq accepts it, the closed connection still has the routing
        id, and the message ends with it. If it has no such connection, the I/O thread has notified
        the ROUTER, and a moment later the ROUTER has confirmed. What follows comes to the ROUTER in
        the right order by itself, since each ZAP reply takes the same way through the I/O thread.
        """
        now = trio.current_time()
        for routing_id, checked in tuple(self._closed.items()):
            if self._router.send_to(routing_id, PROBE) == EHOSTUNREACH:
                unreachable = self._unreachable.setdefault(routing_id, now)
            else:
                unreachable = math.inf
            if checked is None:
                self._closed[routing_id] = checked = now
            if now >= unreachable + MOMENT or now >= checked + LIMIT:
                del self._closed[routing_id]
                self._unreachable.pop(routing_id, None)
        self._router.nudge()
        return not self._closed
