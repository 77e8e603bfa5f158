"""Clients on a network in memory: a plain socket for tests, and the line of `open_client`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from .._protocol import envelope as wire
from .._transport.dealer import RECONNECT, RECONNECT_MOST
from .._transport.line import Accepted, Event, HandshakeFailed, HandshakeSucceeded, Lost
from ._libzmq import Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .._protocol.envelope import Frames
    from ._libzmq import Connection

SOCKET_TYPES = ("REQ", "DEALER")


class MemoryClient(Peer):
    """One connection of a plain client; `MemoryNetwork.connect` makes it.

    It can send at any time, as a DEALER can. If its socket type is REQ, a second request supersedes
    the first, as from a REQ socket with ``ZMQ_REQ_RELAXED``.
    """

    connection: Connection

    def __init__(self, socket_type: str) -> None:
        self.socket_type: str = socket_type
        self._stalled = False
        self._closed = False
        self._lost: str | None = None
        self._heard_in, self._heard = trio.open_memory_channel[list[bytes]](math.inf)

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as the client knows."""
        return not self._closed and self._lost is None

    def send(self, *frames: bytes) -> None:
        """Send a request, as a REQ socket does.

        Args:
            frames: The frames of its body, at least one.

        Raises:
            trio.ClosedResourceError: The client was closed, or has crashed.
            trio.BrokenResourceError: The server has ended the connection.
            RuntimeError: The client is stalled.
            TypeError: A frame is not bytes, or an object with the buffer interface.
        """
        if not frames:
            raise ValueError("frames must be at least one frame, as in send(b''), got none")
        self.send_raw(b"", *frames)

    def send_raw(self, *frames: bytes) -> None:
        """Send a message unchanged, including envelope and delimiter; errors as in `send`."""
        if self._closed:
            raise trio.ClosedResourceError("this client has closed its connection")
        if self._lost is not None:
            raise trio.BrokenResourceError(f"{self._lost}: connect again")
        if self._stalled:
            raise RuntimeError("the client is stalled, and cannot send: resume() it first")
        message = [wire.frame("each of frames", part) for part in frames]
        if self.socket_type == "REQ":
            self._forget_replies()
        self.connection.to_server.put(message)

    async def receive(self) -> list[bytes]:
        """Wait for a message.

        Returns:
            The frames of its body, as a plain client gets them. The body of an error has the
            three frames ``trioreq-error``, a code and a text.

        Raises:
            trio.ClosedResourceError: The client was closed, or has crashed.
            trio.BrokenResourceError: The server has ended the connection, and all messages
                before were received.
        """
        frames = await self.receive_raw()
        return body_of(frames)

    async def receive_raw(self) -> list[bytes]:
        """Wait for a message, and return it unchanged; errors as in `receive`."""
        try:
            return await self._heard.receive()
        except trio.EndOfChannel:
            raise trio.BrokenResourceError(f"{self._lost}") from None

    async def request(self, *frames: bytes) -> list[bytes]:
        """Send a request, and wait for a message: `send` and `receive`."""
        self.send(*frames)
        return await self.receive()

    def crash(self) -> None:
        """Die as by SIGKILL: the kernel closes the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection. Messages that arrive later are lost."""
        if not self._closed:
            self._closed = True
            self._heard.close()
            self.connection.hang_up()

    def stall(self) -> None:
        """Stop as by SIGSTOP: the client reads nothing, and answers no heartbeats."""
        self._stalled = True
        self.connection.to_client.block("stalled")
        self.connection.silence()

    def resume(self) -> None:
        """Continue as by SIGCONT."""
        self._stalled = False
        self.connection.hear_again()
        self.connection.to_client.clear("stalled")

    def __repr__(self) -> str:
        state = "connected" if self.connected else "closed" if self._closed else "lost"
        return f"<MemoryClient {self.socket_type}, {state}>"

    def heard(self, frames: list[bytes]) -> None:
        """A message has arrived (the network calls this)."""
        self._heard_in.send_nowait(frames)

    def down(self, reason: str) -> None:
        """The server has ended the connection (the network calls this)."""
        self._lost = reason
        self._heard_in.close()

    def _forget_replies(self) -> None:
        """Drop earlier replies, as a REQ socket does."""
        try:
            while True:
                self._heard.receive_nowait()
        except trio.WouldBlock:
            pass


class MemoryLine(Peer):
    """The line of `trioreq.open_client` on a network in memory; a `Line`.

    The network calls `up`, `refused`, `heard` and `down`; the client gets them as events and
    messages.

    Args:
        connect: Waits for a server, while the line is not cut, and connects to it.
    """

    max_pack_size = 0  # no packs: tests see each message unchanged

    def __init__(self, connect: Callable[[MemoryLine], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None  # the newest
        self._open = False  # until its end is reported
        self._connected = False
        self._refusal: str | None = None
        self._pause = 0.0  # seconds before the next attempt
        # Lists: a channel would hand an item to the waiting task, where `down` does not find it.
        self._events: list[Event] = []
        self._messages: list[list[bytes]] = []
        self._happened = trio.lowlevel.ParkingLot()
        self._arrived = trio.lowlevel.ParkingLot()
        self.delay: float = 0.0
        self.mended: trio.Event = trio.Event()
        self.mended.set()

    @property
    def connection(self) -> Connection:
        """The newest connection.

        Raises:
            RuntimeError: There was none yet.
        """
        if self._connection is None:
            raise RuntimeError("the client has not connected yet")
        return self._connection

    async def events(self) -> list[Event]:
        """As in `Line`, like the next methods."""
        if not self._open:
            await trio.sleep(self._pause)
            connection = self._connection = await self._connect(self)
            connection.to_server.delay = connection.to_client.delay = self.delay
            self._open = True
            return [Accepted()]
        await trio.lowlevel.checkpoint()
        while not self._events:
            await self._happened.park()
        events, self._events = self._events, []
        match events[-1]:
            case Lost() | HandshakeFailed(None):
                self._open, self._pause = False, RECONNECT
            case HandshakeFailed():
                self._open, self._pause = False, RECONNECT_MOST
        return events

    async def receive(self) -> list[list[bytes]]:
        await trio.lowlevel.checkpoint()
        while not self._messages:
            await self._arrived.park()
        return self._take_messages()

    def send(self, messages: Sequence[Frames]) -> None:
        if self._connected:
            for frames in messages:
                self.connection.to_server.put(list(frames))

    def successor(self) -> MemoryLine:
        other = MemoryLine(self._connect)
        other.delay, other.mended = self.delay, self.mended
        return other

    def close(self) -> None:
        if self._open:
            self._open = False
            self.connection.hang_up()
        self._connected = False

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def up(self) -> None:
        """The server has accepted the client."""
        self._connected = True
        self._happen(HandshakeSucceeded())

    def refused(self, why: str) -> None:
        """The server has refused the client; `down` follows."""
        self._refusal = why

    def heard(self, frames: list[bytes]) -> None:
        """A message has arrived."""
        self._messages.append(frames)
        self._arrived.unpark_all()

    def down(self, reason: str) -> None:
        """The connection has ended."""
        connected, self._connected = self._connected, False
        refusal, self._refusal = self._refusal, None
        self._happen(Lost(self._take_messages()) if connected else HandshakeFailed(refusal))

    def _happen(self, event: Event) -> None:
        self._events.append(event)
        self._happened.unpark_all()

    def _take_messages(self) -> list[list[bytes]]:
        messages, self._messages = self._messages, []
        return messages


def body_of(frames: list[bytes]) -> list[bytes]:
    """The frames after the first delimiter; all frames if there is none."""
    return frames[frames.index(b"") + 1 :] if b"" in frames else list(frames)
