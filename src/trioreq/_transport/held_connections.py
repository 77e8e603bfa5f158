"""Which side has ended a connection.

libzmq ends a connection that sends a frame larger than its limit, and reports no more than that it
is disconnected. By then its descriptor is closed, and perhaps another's. So each connection is held
by a second descriptor from its accept on: at its disconnect that still tells whether the peer has
ended it, or goes on. It is released in the same step, and the kernel closes the connection then.

A second descriptor is a luxury, and to close the last one takes the kernel's time. So connections
are held only while there are few.
"""

from __future__ import annotations

from typing import Final

from .._protocol.connection_table import Connection, ConnectionTable
from .limited_log import LimitedLog
from .server_sockets import HeldConnection

MOST: Final = 1000  # connections; when all end at once, to close them takes some 30 ms


class HeldConnections:
    """The connections that are held.

    Args:
        table: The connections that live.
        room: Connections get descriptors below this one.
        max_message_size: Bytes that a frame may have.
    """

    def __init__(self, table: ConnectionTable, room: int, max_message_size: int) -> None:
        self._table = table
        self._few = min(room // 4, MOST)  # connections: if there are more, none is held
        self._plenty = room // 2  # what holds them is below this descriptor
        self._max_message_size = max_message_size
        self._holds: dict[Connection, HeldConnection] = {}
        self._log = LimitedLog()

    def make_room(self) -> None:
        """Hold nothing if there are too many connections for that."""
        if len(self._table) > self._few:
            self._release_all()

    def keep(self, connection: Connection, hold: HeldConnection) -> None:
        """Hold a connection until it ends, if there are descriptors enough; else release it."""
        few = len(self._table) <= self._few and hold.descriptor < self._plenty
        if few and not connection.disconnected:
            self._holds[connection] = hold
        else:
            hold.close()

    def disconnected(self, connection: Connection, *, accepted: bool) -> None:
        """A connection's disconnect was reported: log it if libzmq has ended the connection.

        Args:
            connection: The connection.
            accepted: Whether it may have finished its handshake, as far as the reader knows.
        """
        hold = self._holds.get(connection)
        if hold is None:
            return
        signs = hold.signs()
        handshake = accepted if signs.handshake is None else signs.handshake
        if signs.peer_ended or signs.silent or not handshake:
            return
        peer = connection.peer
        self._log.warning(
            "connection %d%s from %s was ended by libzmq%s: is a frame larger than "
            "max_message_size (%d bytes)%s?",
            connection.id,
            f" of {peer.user_id}" if peer is not None and peer.user_id else "",
            connection.address,
            "" if signs.silent is None else " in the middle of a message",
            self._max_message_size,
            ", or has its client not answered heartbeats" if signs.silent is None else "",
        )

    def release(self, connection: Connection) -> None:
        """Hold a connection no more; it need not be held."""
        hold = self._holds.pop(connection, None)
        if hold is not None:
            hold.close()

    def close(self) -> None:
        """Hold nothing from now on."""
        self._plenty = 0
        self._release_all()

    def _release_all(self) -> None:
        while self._holds:
            _, hold = self._holds.popitem()
            hold.close()
