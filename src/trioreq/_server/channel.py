"""Messages between the server and a worker process, over a stream socket: the two ends.

A message is its size in eight bytes, and then its bytes. What one end has sent whole the other end
reads, also when the first has been killed in the meantime.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import Final

import trio

SIZE: Final = struct.Struct("!Q")
READ: Final = 256 * 1024  # bytes that are read at once, at most


class Incoming:
    """Messages out of bytes that come in pieces."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, more: bytes) -> None:
        """Take bytes in."""
        self._bytes += more

    def next(self) -> bytes | None:
        """The next message; None if it is not complete."""
        if len(self._bytes) < SIZE.size:
            return None
        end = SIZE.size + SIZE.unpack_from(self._bytes)[0]
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as view:
            message = bytes(view[SIZE.size : end])
        del self._bytes[:end]
        return message


class ServerEnd:
    """The server's end: it waits in trio.

    Args:
        connection: A socket, which it closes.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._incoming = Incoming()

    async def send(self, message: bytes) -> None:
        """Send a message. It is sent whole, without a checkpoint, if there is room for it.

        Raises:
            trio.BrokenResourceError: The other end is closed, and has not got it.
        """
        rest = memoryview(SIZE.pack(len(message)) + message)
        try:
            while True:
                with suppress(BlockingIOError):
                    rest = rest[self._socket.send(rest) :]
                if not rest:
                    return
                await trio.lowlevel.wait_writable(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            raise trio.BrokenResourceError from error

    async def receive(self) -> bytes | None:
        """Wait for the next message; None if the other end is closed and all has been read."""
        while (message := self._incoming.next()) is None:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                more = self._socket.recv(READ)
            except ConnectionResetError:  # it was killed before it had read all
                return None
            if not more:
                return None
            self._incoming.add(more)
        return message

    def close(self) -> None:
        """Close it; the other end reads what was sent, and then that it is closed."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


class WorkerEnd:
    """The worker's end: it blocks. Several threads may send.

    Args:
        connection: A socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._incoming = Incoming()
        self._lock = threading.RLock()
        self._unsent = deque[bytes]()
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)

    def send(self, message: bytes) -> None:
        """Send a message.

        In a signal handler that has interrupted another `send`, it is sent after that one's.
        """
        with self._lock:
            self._unsent.append(message)
            if len(self._unsent) > 1:
                return
            try:
                while self._unsent:
                    self._socket.sendall(SIZE.pack(len(self._unsent[0])) + self._unsent[0])
                    self._unsent.popleft()
            except BaseException:  # as a signal handler raises it, in the middle of a message
                self._socket.close()
                raise

    def receive(self) -> bytes | None:
        """Wait for the next message; None if the other end is closed."""
        while (message := self._incoming.next()) is None:
            more = self._socket.recv(READ)
            if not more:
                return None
            self._incoming.add(more)
        return message

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until the socket takes more; returns whether it does."""
        return bool(self._writable.poll(seconds * 1000))
