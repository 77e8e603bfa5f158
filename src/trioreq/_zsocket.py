"""A zmq socket in trio: it never blocks, and never sleeps on a message that is there.

A zmq socket's descriptor is edge-triggered: it tells that something has happened since one last
looked, and any call on the socket may be that look. So nobody waits on it before `readable` has
said no, and who uses the socket while its reader sleeps calls `nudge` afterwards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn, Protocol

import trio
import zmq

POLLIN = int(zmq.POLLIN)  # the enum's own & is slow
EVENTS = int(zmq.EVENTS)


class Raw(Protocol):
    """As much of `zmq.Socket` as is used here."""

    def recv(self, flags: int = 0, copy: bool = True) -> Any:  # noqa: ANN401
        ...

    def recv_multipart(self, flags: int = 0) -> list[bytes]: ...

    def send(self, data: bytes, flags: int = 0) -> object: ...

    def send_multipart(self, msg_parts: Any, flags: int = 0) -> object:  # noqa: ANN401
        ...

    def get(self, option: int) -> Any: ...  # noqa: ANN401

    def close(self) -> None: ...


class ZSocket:
    """A zmq socket with one task that reads it, as trio has it: one waiter a descriptor.

    Args:
        raw: The socket.
        edge: Waits until something has happened on it since the last call; None for one of
            libzmq's, which has a descriptor for that.
    """

    __slots__ = ("_asleep", "_edge", "_get", "_nap", "raw", "recv", "send")

    def __init__(self, raw: Raw, edge: Callable[[], Awaitable[object]] | None = None) -> None:
        self.raw = raw
        self.recv = raw.recv
        # What pyzmq puts around the send of its backend takes as long again.
        self.send = super(zmq.Socket, raw).send if isinstance(raw, zmq.Socket) else raw.send
        self._get = raw.get
        self._edge = edge or partial(trio.lowlevel.wait_readable, raw.get(zmq.FD))
        self._asleep = False
        self._nap = trio.CancelScope()

    def readable(self) -> bool:
        """Whether there is a message to read."""
        return bool(self._get(EVENTS) & POLLIN)

    @trio.lowlevel.enable_ki_protection
    async def keep_reading(
        self, read: Callable[[], object], then: Callable[[], Awaitable[object]] | None = None
    ) -> NoReturn:
        """Call `read` whenever there may be a message, for ever.

        Args:
            read: Reads what it finds, a bounded number of messages; does not block.
            then: Awaited before the next read if `read` returned true.
        """
        while True:
            # The scope is for `nudge` alone, and lives until it is used.
            with trio.CancelScope() as self._nap:
                while True:
                    if read() and then is not None:
                        await then()
                    elif self.readable():
                        await trio.lowlevel.checkpoint()
                    else:
                        self._asleep = True
                        try:
                            await self._edge()
                        finally:
                            self._asleep = False

    def nudge(self) -> None:
        """After another call on the socket: wake the reader if it sleeps on a message."""
        if self._asleep and self.readable():
            self._asleep = False
            self._nap.cancel()
