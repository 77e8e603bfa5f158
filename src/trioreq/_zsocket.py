"""A zmq socket in trio: it never blocks, and never sleeps on a message that is there.

A zmq socket's descriptor is edge-triggered: it tells that something has happened since one last
looked, and any call on the socket may be that look. So nobody waits on it before `readable` has
said no, and who uses the socket while its reader sleeps calls `nudge` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn, Protocol

import trio
import zmq

POLLIN = int(zmq.POLLIN)  # the enum's own & is slow
EVENTS = int(zmq.EVENTS)
NOBLOCK: Final = 1  # zmq.NOBLOCK; a plain int: each call would look the enum's value up
MORE: Final = 3  # zmq.SNDMORE | zmq.NOBLOCK


class Raw(Protocol):
    """As much of `zmq.Socket` as is used here."""

    def recv(self, flags: int = 0, copy: bool = True) -> Any:  # noqa: ANN401
        ...

    def send(self, data: bytes, flags: int = 0) -> object: ...

    def get(self, option: int) -> Any: ...  # noqa: ANN401

    def close(self) -> None: ...


class Edge(Protocol):
    """What tells that something has happened on a socket."""

    async def wait(self) -> None:
        """Wait until something has happened since the last call on the socket, or `wake`."""

    def wake(self) -> None:
        """Wake who waits."""


class FileEdge:
    """The descriptor that libzmq has for it."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def wait(self) -> None:
        """As in `Edge`."""
        try:  # `suppress` takes five times as long
            await trio.lowlevel.wait_readable(self._descriptor)
        except trio.ClosedResourceError:
            return  # by `wake`

    def wake(self) -> None:
        """As in `Edge`."""
        trio.lowlevel.notify_closing(self._descriptor)


class ZSocket:
    """A zmq socket with one task at a time that reads it, as trio has it: one waiter a descriptor.

    Args:
        raw: The socket.
        edge: What tells that something has happened on it; None for one of libzmq's, which has
            a descriptor for that.
    """

    __slots__ = ("_asleep", "_edge", "_get", "raw", "recv", "send")

    def __init__(self, raw: Raw, edge: Edge | None = None) -> None:
        self.raw: Raw = raw
        self.recv: Callable[..., Any] = raw.recv
        # What pyzmq puts around the send of its backend takes as long again.
        self.send: Callable[..., Any] = (
            super(zmq.Socket, raw).send if isinstance(raw, zmq.Socket) else raw.send
        )
        self._get = raw.get
        self._edge = edge or FileEdge(raw.get(zmq.FD))
        self._asleep = False

    def receive_message(self) -> list[bytes]:
        """Read a message; `zmq.Again` if there is none. Faster than `recv_multipart`."""
        recv = self.recv
        frame = recv(NOBLOCK, copy=False)
        frames = [frame.bytes]
        while frame.more:
            frame = recv(NOBLOCK, copy=False)
            frames.append(frame.bytes)
        return frames

    def send_messages(self, messages: Iterable[Sequence[bytes]]) -> None:
        """Send messages, and do not block. Faster than `send_multipart`."""
        send = self.send
        for *others, last in messages:
            for frame in others:
                send(frame, MORE)
            send(last, NOBLOCK)

    def readable(self) -> bool:
        """Whether there is a message to read."""
        return bool(self._get(EVENTS) & POLLIN)

    async def wait(self) -> None:
        """Wait until there may be a message. The last call on the socket has found none."""
        self._asleep = True
        try:
            await self._edge.wait()
        finally:
            self._asleep = False

    @trio.lowlevel.enable_ki_protection
    async def keep_reading(self, read: Callable[[], object]) -> NoReturn:
        """Call `read` whenever there may be a message, for ever."""
        while True:
            read()
            if self.readable():
                await trio.lowlevel.checkpoint()
            else:
                await self.wait()

    def nudge(self) -> None:
        """After another call on the socket: wake the reader if it sleeps on a message."""
        if self._asleep and self.readable():
            self._asleep = False
            self._edge.wake()
