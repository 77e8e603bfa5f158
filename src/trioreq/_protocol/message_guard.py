"""Whose message does not end, sans-IO: bytes that connections have sent in, connections to end out.

libzmq gathers all frames of a message before it hands any over, and bounds a frame, but not their
number. What it has gathered shows nowhere; but the kernel counts the bytes of each connection. Who
sends more than a message may have, and no message of it comes, is sending one without end.

- Who has sent a notable amount is watched, from the byte on that it is at then. Not sooner, since
  only while somebody is watched has the reader to tell of whom it has read a message.
- Who is heard is watched no more, and begins anew: whatever it had begun has ended.
- Whoever is watched and goes beyond the room of one message is marked. It need not be at fault:
  the end of its message may have been taken in just now, and not been handed over yet.
- libzmq hands over what it has taken in before it takes in more. So who has gone on since it was
  marked, and is not heard though all that came was read, has sent no end within the room.

docs/hostile.md has what this promises, and to whom.
"""

from __future__ import annotations

from collections.abc import Iterable

EXTRA = 512 * 1024  # bytes that a message may have for its framing, beside max_message_size
NOTABLE = 16  # one in so many of the bytes in a message's room is notable
HEARTBEATS = 100  # bytes a second that count for nothing: PING and PONG are no messages
TURNS = 1000  # messages that are read beyond two for each connection, to be sure


class Watch:
    """One who is watched.

    Attributes:
        start: How many bytes libzmq had taken in at the most.
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


class Unfinished:
    """Knows of each connection what it has sent since it was last heard, as far as it matters.

    Args:
        max_message_size: Bytes that a frame may have.

    Attributes:
        room: Bytes that one message may have on the wire.
        watched: Connections whose messages have to be told.
    """

    def __init__(self, max_message_size: int) -> None:
        self.room: int = max_message_size + EXTRA
        self.watched: dict[int, Watch] = {}
        # Bytes that some had sent when they began anew; None if that was not looked at yet.
        self._began: dict[int, int | None] = {}
        self._read = 0

    def heard(self, numbers: Iterable[int]) -> None:
        """Messages of these connections were read. To be called while anybody is watched."""
        for number in numbers:
            self._read += 1
            if self.watched.pop(number, None) is not None:
                self._began[number] = None

    def forget(self, number: int) -> None:
        """A connection is gone."""
        self.watched.pop(number, None)
        self._began.pop(number, None)

    def is_notable(self, number: int, received: int) -> bool:
        """Whether it is worth knowing what libzmq has taken in of what a connection has sent."""
        watch = self.watched.get(number)
        if watch is not None:
            return received - watch.start > self.room
        began = self._began.get(number, 0)
        if began is None:
            began = self._began[number] = received
        return received - began > self.room // NOTABLE

    def weigh(self, number: int, least: int, most: int, now: float) -> bool:
        """Take in how many bytes libzmq has taken in of a connection's.

        Args:
            number: The connection.
            least: Bytes that it has taken in at the least.
            most: And at the most, at the same time.
            now: Seconds.

        Returns:
            Whether `is_endless` is to be asked, when what has come was read.
        """
        watch = self.watched.get(number)
        if watch is None:
            self.watched[number] = Watch(most, now)
        elif least - watch.start > self.room + HEARTBEATS * (now - watch.since):
            if watch.marked is None:
                watch.marked = most
            elif least > watch.marked:
                if watch.read is None:
                    watch.read = self._read
                return True
        return False

    def is_endless(self, number: int, connections: int, *, dry: bool) -> bool:
        """Whether a connection that was weighed and found to be asked about is to end.

        Args:
            number: The connection.
            connections: How many there are.
            dry: Whether all that came until now was read. There may always be more: then it is
                enough that a message of each has been read. libzmq takes one of each in turn.
        """
        watch = self.watched.get(number)
        if watch is None or watch.read is None:  # it was heard just now
            return False
        return dry or self._read - watch.read >= 2 * connections + TURNS
