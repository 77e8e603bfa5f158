"""Finds connections that send a message without end: byte counts in, connections to evict out.

libzmq collects all frames of a message before it delivers it. It limits the size of a frame, but
not their number, and it does not report how much it has collected; but the kernel counts the bytes
of each connection. If more bytes have arrived on a connection than one message may have, and no
message was read, the message has no end.

- A connection is watched when it has sent a notable amount, from the byte that it is at then. Not
  earlier, since the reader must report the messages of watched connections.
- When a message of a watched connection is read, the count starts again: the message has ended.
- A watched connection that exceeds the room of one message is marked. It may be legitimate: libzmq
  may have read the end of the message, and not delivered it yet.
- libzmq delivers what it has read before it reads more. So a marked connection that has sent more,
  and of which no message is read although all delivered messages were read, has exceeded the room.

docs/hostile.md has the guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable

from .connection_table import Connection

EXTRA = 512 * 1024  # bytes that a message may have beside max_message_size, for its framing
NOTABLE = 16  # a sixteenth of a message's room is notable
HEARTBEATS = 100  # bytes a second that do not count: PING and PONG are not messages
TURNS = 1000  # messages to read beyond two for each connection, as a margin


class Watch:
    """The state of a connection that is watched.

    Attributes:
        start: Bytes that libzmq had read at most when the watch began.
        since: When it began.
        marked: Bytes that libzmq had read at most when the connection was marked; None before.
        read: Messages that were read in all when it had sent more than that; None before.
    """

    __slots__ = ("marked", "read", "since", "start")

    def __init__(self, start: int, since: float) -> None:
        self.start = start
        self.since = since
        self.marked: int | None = None
        self.read: int | None = None


class MessageGuard:
    """Decides about each connection by its bytes since a message of it was last read.

    Args:
        max_message_size: Bytes that a frame may have.

    Attributes:
        room: Bytes that one message may have on the wire.
        watched: Connections whose messages must be reported to `heard`.
    """

    def __init__(self, max_message_size: int) -> None:
        self.room: int = max_message_size + EXTRA
        self.watched: set[Connection] = set()
        self._read = 0

    def heard(self, connections: Iterable[Connection]) -> None:
        """Messages of these connections were read. Call it while any connection is watched."""
        for connection in connections:
            self._read += 1
            if connection.watch is not None:
                self.forget(connection)
                connection.began = None  # at a byte that the next check determines

    def forget(self, connection: Connection) -> None:
        """Stop watching a connection: it has closed, or a message of it was read."""
        if connection.watch is not None:
            connection.watch = None
            self.watched.remove(connection)

    def is_notable(self, connection: Connection, received: int) -> bool:
        """Whether to determine how much of the received bytes libzmq has read, which costs more."""
        watch = connection.watch
        if watch is not None:
            return received - watch.start > self.room
        if connection.began is None:
            connection.began = received
        return received - connection.began > self.room // NOTABLE

    def weigh(self, connection: Connection, least: int, most: int, now: float) -> bool:
        """Record how many bytes of a connection libzmq has read.

        Args:
            connection: The connection.
            least: The number of bytes at least.
            most: The number at most, at the same time.
            now: Seconds.

        Returns:
            Whether to call `is_endless`, after the messages that have arrived were read.
        """
        watch = connection.watch
        if watch is None:
            connection.watch = Watch(most, now)
            self.watched.add(connection)
        elif least - watch.start > self.room + HEARTBEATS * (now - watch.since):
            if watch.marked is None:
                watch.marked = most
            elif least > watch.marked:
                if watch.read is None:
                    watch.read = self._read
                return True
        return False

    def is_endless(self, connection: Connection, connections: int, *, dry: bool) -> bool:
        """Whether a connection for which `weigh` returned True is to be evicted.

        Args:
            connection: The connection.
            connections: The number of connections.
            dry: Whether all messages that have arrived were read. If there are always more, it is
                enough that a message of each connection was read: libzmq reads them in turn.
        """
        watch = connection.watch
        if watch is None or watch.read is None:  # a message of it has just been read
            return False
        return dry or self._read - watch.read >= 2 * connections + TURNS
