"""A zmq socket in trio: it never blocks, and no wake-up for a message is lost.

A zmq socket's descriptor is edge-triggered: it signals that something has happened since the last
call on the socket, and any call may consume the signal. So a task waits only after a call has found
no message, and a task that uses the socket while another one waits calls `nudge` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, Self

import trio
import zmq

from .heartbeats import heartbeat_times
from .messages import Known, Messages, Names, Received, messages_of


class Edge(Protocol):
    """Signals that something has happened on a socket."""

    async def wait(self) -> None:
        """Wait until something has happened since the last call on the socket, or `wake`."""

    def wake(self) -> None:
        """Wake the task that waits."""


class FileEdge:
    """The descriptor of a zmq socket."""

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
    """A zmq socket that one task at a time reads: trio allows one waiter for each descriptor.

    Its calls are those of `Messages`.

    Args:
        messages: Reads and writes whole messages on the socket.
        edge: Signals that something has happened on it.
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
        self._asleep = False  # whether a task waits

    @classmethod
    def of(cls, raw: zmq.Socket[bytes]) -> Self:
        """Make one for a socket of pyzmq."""
        descriptor: int = raw.get(zmq.FD)  # type: ignore[assignment]
        return cls(messages_of(raw), FileEdge(descriptor))

    async def wait(self) -> None:
        """Wait until there may be a message. The last call on the socket must have found none."""
        self._asleep = True
        try:
            await self._edge.wait()
        finally:
            self._asleep = False

    @trio.lowlevel.enable_ki_protection
    async def keep_reading(self, read: Callable[[], object]) -> NoReturn:
        """Call `read` whenever there may be a message, until cancelled."""
        while True:
            read()
            if self.readable():
                await trio.lowlevel.checkpoint()
            else:
                await self.wait()

    def nudge(self) -> None:
        """Wake the waiting task if there is a message, after another call on the socket."""
        if self._asleep and self.readable():
            self._asleep = False
            self._edge.wake()


def set_heartbeat(raw: zmq.Socket[bytes], heartbeat: float | None) -> None:
    """Have libzmq send heartbeats.

    Args:
        raw: The socket; it must not be bound or connected yet.
        heartbeat: Seconds after which a silent peer is disconnected; None for no heartbeats.
    """
    if heartbeat is not None:
        # A peer that stops right after a PONG is sent the next PING after the interval, and has
        # failed to answer it after the timeout.
        interval, timeout = heartbeat_times(heartbeat)
        raw.heartbeat_ivl = max(1, round(interval * 1000))
        raw.heartbeat_timeout = max(1, round(timeout * 1000))


def open_monitor(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """Open the socket that receives a monitor's events; `address` is that of the monitor."""
    monitor = context.socket(zmq.PAIR)
    monitor.rcvhwm = 0  # a full monitor would block libzmq's I/O thread
    monitor.linger = 0
    monitor.connect(address)
    return monitor


async def terminate(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Terminate a Context whose sockets are closed, after their linger.

    It has its own limiter: trio's default one may be exhausted by threads that wait for this server
    or client to end.
    """
    with trio.CancelScope(shield=True):  # bounded by the linger
        try:
            await trio.to_thread.run_sync(context.term, limiter=trio.CapacityLimiter(1))
        except RuntimeError:  # no thread can be started: block the event loop instead
            context.term()
