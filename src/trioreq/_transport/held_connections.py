"""Detects which side has ended a connection.

libzmq closes a connection that sends a frame larger than its limit, and reports only the
disconnect. By then its descriptor is closed, and may belong to another connection. So each
connection is held by a second descriptor from its accept on, which still shows at the disconnect
whether the peer has ended the connection. It is closed in the same step, and only then does the
kernel close the connection.

A second descriptor costs one of a limited number, and closing it costs time. So connections are
held only while there are few.
"""

from __future__ import annotations

from typing import Final

from .._protocol.connection_table import Connection, ConnectionTable
from .limited_log import LimitedLog
from .server_sockets import HeldConnection

MOST: Final = 1000  # connections; if all end at once, closing them takes some 30 ms


class HeldConnections:
    """The connections that are held.

    Args:
        table: The open connections.
        room: Connections get descriptors below this one.
        max_message_size: Bytes that a frame may have.
    """

    def __init__(self, table: ConnectionTable, room: int, max_message_size: int) -> None:
        self._table = table
        self._few = min(room // 4, MOST)  # connections: if there are more, none is held
        self._plenty = room // 2  # they are held by descriptors below this one
        self._max_message_size = max_message_size
        self._holds: dict[Connection, HeldConnection] = {}
        self._log = LimitedLog()

    def make_room(self) -> None:
        """Release all connections if there are too many to hold."""
        if len(self._table) > self._few:
            self._release_all()

    def keep(self, connection: Connection, hold: HeldConnection) -> None:
        """Hold a connection until it ends if descriptors suffice; otherwise release it."""
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
        """Release a connection, if it is held."""
        hold = self._holds.pop(connection, None)
        if hold is not None:
            hold.close()

    def close(self) -> None:
        """Release all connections, and hold no more."""
        self._plenty = 0
        self._release_all()

    def _release_all(self) -> None:
        while self._holds:
            _, hold = self._holds.popitem()
            hold.close()
