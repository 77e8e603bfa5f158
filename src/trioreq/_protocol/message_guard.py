"""Which connection sends a message without end: byte counts in, connections to evict out.

libzmq gathers all frames of a message before it hands any over. It bounds the size of a frame, but
not their number, and it does not report what it has gathered; but the kernel counts the bytes of
each connection. A connection that sends more than one message may have, and from which no message
is read, sends one without end.

- A connection that has sent a notable amount is watched, from the byte that it is at then. Not
  sooner, since only while a connection is watched has the reader to report whose messages it read.
- A watched connection from which a message is read begins again: the message has ended.
- A watched connection that exceeds the room of one message is marked. It need not be at fault: the
  end of its message may have been taken in just now, and not be handed over yet.
- libzmq hands over what it has taken in before it takes in more. So a marked connection that has
  gone on, and from which nothing is read although all that came was read, has sent no end within
  the room.

docs/hostile.md says what this promises.
"""

from __future__ import annotations

from collections.abc import Iterable

from .connection_table import Connection

EXTRA = 512 * 1024  # bytes that a message may have for its framing, beside max_message_size
NOTABLE = 16  # one in so many of the bytes in a message's room is notable
HEARTBEATS = 100  # bytes a second that do not count: PING and PONG are not messages
TURNS = 1000  # messages that are read beyond two for each connection, to be sure


class Watch:
    """What is known of a connection that is watched.

    Attributes:
        start: How many bytes libzmq had taken in at most when the watch began.
        since: When that was.
        marked: The same as `start`, when the room was first seen exceeded; None before that.
        read: How many messages had been read in all when it had gone on; None before that.
    """

    __slots__ = ("marked", "read", "since", "start")

    def __init__(self, start: int, since: float) -> None:
        self.start = start
        self.since = since
        self.marked: int | None = None
        self.read: int | None = None


class MessageGuard:
    """Judges each connection by what it has sent since a message of it was last read.

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
                connection.began = None  # at a byte that is not known before the next look

    def forget(self, connection: Connection) -> None:
        """Watch a connection no more: it is gone, or was heard."""
        if connection.watch is not None:
            connection.watch = None
            self.watched.remove(connection)

    def is_notable(self, connection: Connection, received: int) -> bool:
        """Whether it is worth knowing what libzmq has taken in of what the kernel received."""
        watch = connection.watch
        if watch is not None:
            return received - watch.start > self.room
        if connection.began is None:
            connection.began = received
        return received - connection.began > self.room // NOTABLE

    def weigh(self, connection: Connection, least: int, most: int, now: float) -> bool:
        """Record how many bytes libzmq has taken in of a connection's.

        Args:
            connection: The connection.
            least: Bytes that it has taken in at least.
            most: And at most, at the same time.
            now: Seconds.

        Returns:
            Whether `is_endless` is to be asked, after what has come was read.
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
            connections: How many there are.
            dry: Whether all that came until now was read. There may always be more: then it is
                enough that a message of each has been read. libzmq takes one of each in turn.
        """
        watch = connection.watch
        if watch is None or watch.read is None:  # a message of it was read just now
            return False
        return dry or self._read - watch.read >= 2 * connections + TURNS
