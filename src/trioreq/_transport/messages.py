"""Whole messages, from and to a zmq socket. Nothing here waits.

There are two ways: through pyzmq, frame by frame; and `_cmessages.c`, which does the same in one
call for a message, where trioreq is compiled. libzmq takes and hands over a message as a whole, so
neither ever holds a part of one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from errno import EAGAIN, EHOSTUNREACH
from typing import Any, Final, Protocol

import zmq

log = logging.getLogger("trioreq")

try:
    from ._cmessages import Messages as _CMessages
except ImportError as error:
    _CMessages = None  # type: ignore[assignment,misc]
    if not isinstance(error, ModuleNotFoundError):  # else it is not compiled
        log.warning("trioreq is slower than it might be: %s", error)

COMPILED: Final = _CMessages is not None
NOBLOCK: Final = 1  # zmq.NOBLOCK; a plain int: each call would look the enum's value up
MORE: Final = 3  # zmq.SNDMORE | zmq.NOBLOCK
SRCFD: Final = int(zmq.SRCFD)
EVENTS: Final = int(zmq.EVENTS)
POLLIN: Final = int(zmq.POLLIN)

Known = dict[bytes, Any]  # by routing id
Names = tuple[str, ...]
Origin = tuple[int, tuple[str, ...]]  # a connection's descriptor, and properties
Received = tuple[bytes, list[bytes], Origin | None]


class Messages(Protocol):
    """What a socket has to say, and what is said to it.

    Raises:
        zmq.ZMQError: By all of them, for what cannot come in the course of things, such as that
            the socket is closed.
    """

    def receive(self) -> list[bytes] | None:
        """The next message; None if there is none."""

    def receive_from(self, known: Known, names: Names, /) -> Received | None:
        """The next message of a ROUTER, and where it came from; None if there is none.

        Args:
            known: Routing ids of which nothing more is asked.
            names: Properties that are asked of any other.

        Returns:
            The routing id, the frames, and the origin; None for that of one who is known. A
            property is empty if there is none of its name.
        """

    def send(self, frames: Sequence[bytes], /) -> int:
        """Hand a message over.

        Returns:
            0, or why it was not: EAGAIN, there is no room, or no connection any more.
        """

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        """Hand a message over to a ROUTER.

        Returns:
            0, or why it was not: EAGAIN, there is no room; EHOSTUNREACH, nobody has the routing id.
        """

    def readable(self) -> bool:
        """Whether there is a message."""

    def close(self) -> None:
        """Close the socket."""


class PyMessages:
    """Those of a socket of pyzmq, by its own methods.

    Args:
        raw: The socket.
    """

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self.raw = raw
        self._recv: Any = raw.recv
        self._send: Any = super(zmq.Socket, raw).send  # without what pyzmq puts around it

    def receive(self) -> list[bytes] | None:
        """As in `Messages`."""
        if not self.readable():  # it costs a third of the exception
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
        """The content of a frame, and of those that follow it."""
        frames = [frame.bytes]
        while frame.more:
            frame = self._recv(NOBLOCK, copy=False)
            frames.append(frame.bytes)
        return frames

    def send(self, frames: Sequence[bytes], /) -> int:
        """As in `Messages`."""
        try:
            self._send_all(frames)
        except zmq.Again:  # at any frame: a DEALER may lose its connection in between
            return EAGAIN
        return 0

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        """As in `Messages`."""
        try:
            self._send(routing_id, MORE)
        except zmq.ZMQError as error:  # only ever at the first frame
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
    """A text that libzmq keeps beside a message; empty if there is none of that name."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def messages_of(raw: zmq.Socket[bytes]) -> Messages:
    """The faster way that is there."""
    return _CMessages(raw) if COMPILED else PyMessages(raw)
