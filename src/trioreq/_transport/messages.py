"""Whole messages, from and to a zmq socket. Nothing here waits.

There are two implementations: `PyMessages`, which calls pyzmq for each frame, and `_cmessages.c`,
which makes one call for each message. The latter is used if trioreq was compiled. libzmq delivers
and accepts whole messages, so neither implementation keeps a part of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EAGAIN, EHOSTUNREACH
from typing import Any, Final, Protocol

import zmq

from .._log import log

try:
    from ._cmessages import Messages as _CMessages
except ImportError as error:
    _CMessages = None  # type: ignore[assignment,misc]
    if error.name != f"{__package__}._cmessages":  # otherwise trioreq was not compiled
        log.warning("trioreq is slower than it could be: %s", error)

COMPILED: Final = _CMessages is not None
NOBLOCK: Final = 1  # zmq.NOBLOCK as a plain int, without the enum's lookup in each call
MORE: Final = 3  # zmq.SNDMORE | zmq.NOBLOCK
SRCFD: Final = int(zmq.SRCFD)
EVENTS: Final = int(zmq.EVENTS)
POLLIN: Final = int(zmq.POLLIN)

Known = dict[bytes, Any]  # by routing id
Names = tuple[str, ...]
Origin = tuple[int, tuple[str, ...]]  # a connection's descriptor, and its properties
Received = tuple[bytes, list[bytes], Origin | None]  # routing id, frames, origin


class Messages(Protocol):
    """Receives and sends the messages of one socket.

    A zmq socket is not thread-safe: only one thread may use it, and others must not close it.

    Raises:
        zmq.ZMQError: From each method, on an error that is not expected, such as ENOTSOCK of a
            closed socket.
    """

    def receive(self) -> list[bytes] | None:
        """Receive a message; returns None if there is none."""

    def receive_from(self, known: Known, names: Names, /) -> Received | None:
        """Receive a message with its origin; returns None if there is none. For a ROUTER.

        Args:
            known: The routing ids for which no origin is needed.
            names: The properties in the origin.

        Returns:
            The routing id, the frames, and the origin: None if the routing id is known. A
            property that the connection does not have is empty.
        """

    def send(self, frames: Sequence[bytes], /) -> int:
        """Send a message of at least one frame.

        Returns:
            0 or an errno: EAGAIN if there is no room, or no connection any more.
        """

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        """Send a message of at least one frame to a connection. For a ROUTER.

        A message that is refused is not copied, so it costs little to try a large one again.

        Returns:
            0 or an errno: EAGAIN if there is no room, EHOSTUNREACH if no connection has the
            routing id.
        """

    def readable(self) -> bool:
        """Return whether there is a message."""

    def close(self) -> None:
        """Close the socket."""


class PyMessages:
    """Messages through the methods of pyzmq's socket.

    Args:
        raw: The socket.
    """

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self.raw = raw
        self._recv: Any = raw.recv
        self._send: Any = super(zmq.Socket, raw).send  # without pyzmq's checks

    def receive(self) -> list[bytes] | None:
        """As in `Messages`."""
        if not self.readable():  # a third of the cost of an exception
            return None
        return self._from(self._recv(NOBLOCK, copy=False))

    def receive_from(self, known: Known, names: Names, /) -> Received | None:
        """As in `Messages`."""
        try:
            routing_id = self._recv(NOBLOCK)
        except zmq.Again:
            return None
        frame = self._recv(NOBLOCK, copy=False)
        origin = None
        if routing_id not in known:
            origin = frame.get(SRCFD), tuple(_property(frame, name) for name in names)
        return routing_id, self._from(frame), origin

    def _from(self, frame: zmq.Frame) -> list[bytes]:
        """Return the content of a frame, and receive the rest of its message."""
        frames = [frame.bytes]
        while frame.more:
            frame = self._recv(NOBLOCK, copy=False)
            frames.append(frame.bytes)
        return frames

    def send(self, frames: Sequence[bytes], /) -> int:
        """As in `Messages`."""
        try:
            self._send_all(frames)
        except zmq.Again:  # at any frame: a DEALER may lose its connection meanwhile
            return EAGAIN
        return 0

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        """As in `Messages`."""
        try:
            self._send(routing_id, MORE)
        except zmq.ZMQError as error:  # a ROUTER fails at the routing id or not at all
            if error.errno in (EAGAIN, EHOSTUNREACH):
                return error.errno
            raise
        self._send_all(frames)
        return 0

    def _send_all(self, frames: Sequence[bytes]) -> None:
        for frame in frames[:-1]:
            self._send(frame, MORE)
        self._send(frames[-1], NOBLOCK)

    def readable(self) -> bool:
        """As in `Messages`."""
        events: int = self.raw.get(EVENTS)  # type: ignore[assignment]
        return bool(events & POLLIN)

    def close(self) -> None:
        """As in `Messages`."""
        self.raw.close()


def _property(frame: zmq.Frame, name: str) -> str:
    """Return a property of a frame's connection; empty if it has none of that name."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
    except UnicodeDecodeError as error:  # the client may have set it
        return error.object.decode(errors="backslashreplace")


def messages_of(raw: zmq.Socket[bytes]) -> Messages:
    """Return the faster implementation that there is, for a socket."""
    return _CMessages(raw) if COMPILED else PyMessages(raw)
