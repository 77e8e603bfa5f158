"""A peer that speaks ZMTP 3.0 by hand (ZeroMQ RFC 23, the NULL mechanism).

It can do what a libzmq client never would. It blocks, with a timeout on everything.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

LIMIT = 10.0  # seconds of real time for anything that a peer waits for

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
GARBAGE = b"\xff" * 32  # no frame has these flags
MORE, LONG, COMMAND = 1, 2, 4

Address = tuple[str, int] | str


def frame(body: bytes, flags: int = 0) -> bytes:
    """A frame as it goes on the wire."""
    if len(body) < 256:
        return b"%c%c%b" % (flags, len(body), body)
    return b"%c%b%b" % (flags | LONG, len(body).to_bytes(8, "big"), body)


def message(*bodies: bytes) -> bytes:
    """All frames of a message."""
    *first, last = bodies
    return b"".join(frame(body, MORE) for body in first) + frame(last)


def command(name: bytes, data: bytes = b"") -> bytes:
    """A command frame."""
    return frame(b"%c%b%b" % (len(name), name, data), COMMAND)


def ready(properties: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The READY command."""
    return command(b"READY", b"".join(metadata(name, value) for name, value in properties))


def metadata(name: bytes, value: bytes) -> bytes:
    """One property, as READY and ZAP have it."""
    return b"%c%b%b%b" % (len(name), name, len(value).to_bytes(4, "big"), value)


def address_of(endpoint: str) -> Address:
    """Where a plain socket finds an endpoint."""
    transport, _, rest = endpoint.partition("://")
    if transport == "ipc":
        return rest
    host, _, port = rest.rpartition(":")
    return host, int(port)


def abstract(name: str) -> str:
    """An abstract address of ipc, with this process's number: the whole machine shares them."""
    return f"\0{os.getpid()}/{name}"


class RawPeer:
    """One connection.

    Args:
        endpoint: Where to; tcp or ipc.
        source: Where from, so that the other side can distinguish peers: an IP address of
            127.0.0.0/8; on ipc, any name.
    """

    def __init__(self, endpoint: str, source: str = "") -> None:
        address = address_of(endpoint)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(LIMIT)
            if source:
                self.socket.bind(abstract(source) if family == socket.AF_UNIX else (source, 0))
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ask(
        self, kind: bytes = b"DEALER", routing_id: bytes = b"", *more: tuple[bytes, bytes]
    ) -> None:
        """Send a greeting and READY, without waiting for those of the other side."""
        properties = [(b"Socket-Type", kind), (b"Identity", routing_id), *more]
        self.send(GREETING + ready(properties))

    def enter(self) -> None:
        """Wait for the greeting and READY of the other side; messages may be sent after that."""
        self._read(len(GREETING))
        body = self.read_frame()
        assert body.startswith(b"\x05READY"), body

    def shake_hands(
        self, kind: bytes = b"DEALER", routing_id: bytes = b"", *more: tuple[bytes, bytes]
    ) -> None:
        """`ask` and `enter`."""
        self.ask(kind, routing_id, *more)
        self.enter()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def read_frame(self) -> bytes:
        """Wait for a frame, message or command; returns its body."""
        flags = self._read(1)[0]
        size = int.from_bytes(self._read(8 if flags & LONG else 1), "big")
        return self._read(size)

    def wait_read(self) -> None:
        """Wait until the other side's libzmq has handed on all that was sent to it.

        It answers a PING when it has read what came before, but hands that on a moment later;
        at the second one it has.
        """
        for _ in range(2):
            self.send(command(b"PING", b"\0\0"))
            body = self.read_frame()
            assert body.startswith(b"\x04PONG"), body

    def read_end(self) -> None:
        """Wait until the other side has closed, and drop what it sends before."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass

    def send_until_end(self, data: bytes) -> int:
        """Send the same again and again, until the other side has closed; returns how many bytes.

        A plain `send` waits for room, also when the other side will never read again.
        """
        self.socket.setblocking(False)
        sent = 0
        try:
            while True:
                read, write, _ = select.select([self.socket], [self.socket], [], LIMIT)
                assert read or write, "the other side neither reads nor closes"
                if read and not self.socket.recv(65536):
                    return sent
                if write:
                    sent += self.socket.send(data[sent % len(data) :])
        except (ConnectionResetError, BrokenPipeError):
            return sent
        finally:
            self.socket.settimeout(LIMIT)

    def unread(self) -> bytes:
        """What has arrived and was not read; does not wait."""
        self.socket.setblocking(False)
        try:
            return self._buffer + self.socket.recv(65536)
        except BlockingIOError:
            return self._buffer
        finally:
            self.socket.settimeout(LIMIT)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a reset, which tcp has, and ipc does not."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionResetError("the other side has closed")
            self._buffer += more
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data
