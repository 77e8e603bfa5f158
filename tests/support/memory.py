"""A transport without a kernel: what the server is tested on under an autojump clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from trioreq._server import Server
from trioreq._transport import Peer, Sent, Session
from trioreq._workers import Handler


class MemoryClient:
    """One connection, and both of its ends: the link that the server sends on, and the peer."""

    session: Session

    def __init__(self, client: Peer) -> None:
        self.client = client
        self.sent: list[list[bytes]] = []
        self.handed_after_end: list[list[bytes]] = []
        self.gone = False
        self.full = False
        self._replies_in, self._replies_out = trio.open_memory_channel[list[bytes]](math.inf)

    def send(self, frames: Sequence[bytes]) -> Sent:
        if self.gone:
            self.handed_after_end.append(list(frames))
            return Sent.GONE
        if self.full:
            return Sent.FULL
        self.sent.append(list(frames))
        self._replies_in.send_nowait(list(frames))
        return Sent.OUT

    def say(self, *frames: bytes) -> None:
        """Send a request as a REQ socket does, with an empty envelope."""
        self.session.arrived([b"", *frames])

    def say_raw(self, *frames: bytes) -> None:
        self.session.arrived(frames)

    async def hear(self) -> list[bytes]:
        """Wait for a reply; returns its body."""
        frames = await self._replies_out.receive()
        return frames[frames.index(b"") + 1 :]

    def die(self) -> None:
        """The connection is gone."""
        self.gone = True
        self.session.left()


class MemoryTransport:
    """Connections that are made with `connect`."""

    endpoints = ("memory",)
    server: Server

    def __init__(self) -> None:
        self.clients: list[MemoryClient] = []

    @property
    def connections(self) -> int:
        return sum(not client.gone for client in self.clients)

    async def run(self, host: object) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        """Nothing is held."""

    def connect(self, socket_type: str = "REQ") -> MemoryClient:
        number = len(self.clients) + 1
        client = MemoryClient(Peer(number, "memory", socket_type))
        client.session = self.server.joined(client)
        self.clients.append(client)
        return client


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[MemoryTransport]:
    """The server on the memory transport; a test that gets stuck fails at once by the clock."""
    transport = MemoryTransport()
    options = {
        "slots": 10,
        "max_queued_per_client": 10,
        "timeout": math.inf,
    } | options
    server = transport.server = Server(handler, transport, **options)
    with trio.fail_after(1e6):
        async with trio.open_nursery() as nursery:
            await nursery.start(server._run)
            yield transport
            nursery.cancel_scope.cancel()
