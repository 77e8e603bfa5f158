"""A zmq socket in trio: it never blocks, and never sleeps on a message that is there.

A zmq socket's descriptor is edge-triggered: it tells that something has happened since one last
looked, and any call on the socket may be that look. So nobody waits on it before a look has found
nothing, and who uses the socket while its reader sleeps calls `nudge` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, Self

import trio
import zmq

from .messages import Known, Messages, Names, Received, messages_of


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

    Its calls are those of `Messages`.

    Args:
        messages: What it has to say, and what is said to it.
        edge: What tells that something has happened on it.
    """

    __slots__ = (
        "_asleep",
        "_edge",
        "close",
        "messages",
        "readable",
        "receive",
        "receive_from",
        "send",
        "send_to",
    )

    def __init__(self, messages: Messages, edge: Edge) -> None:
        self.messages: Messages = messages
        self.receive: Callable[[], list[bytes] | None] = messages.receive
        self.receive_from: Callable[[Known, Names], Received | None] = messages.receive_from
        self.send: Callable[[Sequence[bytes]], int] = messages.send
        self.send_to: Callable[[bytes, Sequence[bytes]], int] = messages.send_to
        self.readable: Callable[[], bool] = messages.readable
        self.close: Callable[[], None] = messages.close
        self._edge = edge
        self._asleep = False

    @classmethod
    def of(cls, raw: zmq.Socket[bytes]) -> Self:
        """One of libzmq's."""
        descriptor: int = raw.get(zmq.FD)  # type: ignore[assignment]
        return cls(messages_of(raw), FileEdge(descriptor))

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


async def terminate(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Terminate a Context whose sockets are closed: it waits for their linger.

    In a thread that only this call needs: trio's default limiter may be exhausted by threads that
    wait for this very server or client to end.
    """
    with trio.CancelScope(shield=True):  # bounded by the linger
        try:
            await trio.to_thread.run_sync(context.term, limiter=trio.CapacityLimiter(1))
        except RuntimeError:  # no thread can be started: then the event loop waits
            context.term()
