"""Where a server and its clients meet: in memory, or on real sockets. To a test both are one.

On the memory network time is virtual, and clients act at once. On the wire they are sockets of
libzmq in this process; those that are `mortal` have a process of their own, which is really killed
or stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
import zmq

import trioreq
from harness.clients import ClientProcess, ClientSocket, open_client_process, open_clients
from harness.zmtp import RawPeer, message
from trioreq.testing import MemoryClient, MemoryNetwork, open_memory_network

from .serving import LIMIT, spy_on_sends


class PlainClient(Protocol):
    """One connection of a plain client. Also as a REQ it can send again at any time."""

    async def send(self, *frames: bytes) -> None:
        """Send a request, as its kind of client does."""

    async def receive(self) -> list[bytes]:
        """Wait for a reply: its body."""

    async def close(self) -> None:
        """Close the connection."""


class RawClient(PlainClient, Protocol):
    """A DEALER whose whole messages the test sees."""

    async def send_raw(self, *frames: bytes) -> None:
        """Send a message, envelope and delimiter included."""

    async def receive_raw(self) -> list[bytes]:
        """Wait for one."""


class MortalClient(PlainClient, Protocol):
    """A client that can die."""

    async def crash(self) -> None:
        """Die at once (SIGKILL)."""

    async def stall(self) -> None:
        """Do nothing at all any more (SIGSTOP)."""

    async def resume(self) -> None:
        """Go on (SIGCONT)."""


class Net(ABC):
    """One place, with a server when there is one.

    Attributes:
        brief: Seconds of trio's time that one can afford to wait for.
        heartbeat: The same, for a heartbeat.
        tolerance: The same, for what a busy machine adds.
        in_step: Whether all that is sent in one breath is read in one.
        handed_over: The last frames of all messages that a server's ROUTER socket was given.
        refused: The first ones of those that it did not take.
    """

    server: trioreq.Server
    brief: float
    heartbeat: float
    tolerance: float
    in_step: bool

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.handed_over: list[bytes] = []
        self.refused: list[bytes] = []

    async def serve(
        self, handler: Callable[[trioreq.Request], Any], **options: Any
    ) -> trioreq.Server:
        """Start a server, with few turns and places to wait unless the test says how many."""
        options = {"max_in_flight": 10, "max_queued_per_client": 10} | options
        self._scope = trio.CancelScope()
        self._over = trio.Event()

        async def run(task_status: trio.TaskStatus[trioreq.Server]) -> None:
            with self._scope:
                await trioreq.serve(handler, self._address(), task_status=task_status, **options)
            self._over.set()

        self.server = await self._nursery.start(run)
        router: Any = self.server._router
        spy_on_sends(router._socket, self.handed_over, self.refused)
        return self.server

    async def stop(self) -> None:
        """Cancel the server, and wait until it has ended."""
        self._scope.cancel()
        await self._over.wait()

    @abstractmethod
    async def connect(
        self, socket_type: str = "REQ", *, routing_id: bytes | None = None
    ) -> PlainClient:
        """Connect a client."""

    @abstractmethod
    async def connect_dealer(self) -> RawClient:
        """Connect one that shows its envelopes."""

    @abstractmethod
    async def connect_mortal(
        self, socket_type: str = "REQ", *, routing_id: bytes | None = None
    ) -> MortalClient:
        """Connect one that can die."""

    @abstractmethod
    async def connect_and_fall_silent(self, *frames: bytes) -> object:
        """Connect a client that sends a request; and then its cable is cut."""

    @abstractmethod
    def open_client(self, **options: Any) -> Any:
        """`trioreq.open_client`."""

    @abstractmethod
    def _address(self) -> Any:
        """Where to serve."""


class MemoryPlain:
    """All three kinds of clients, in memory."""

    def __init__(self, client: MemoryClient) -> None:
        self._client = client

    async def send(self, *frames: bytes) -> None:
        self._client.send(*frames)

    async def send_raw(self, *frames: bytes) -> None:
        self._client.send_raw(*frames)

    async def receive(self) -> list[bytes]:
        return await self._client.receive()

    async def receive_raw(self) -> list[bytes]:
        return await self._client.receive_raw()

    async def close(self) -> None:
        self._client.close()

    async def crash(self) -> None:
        self._client.crash()

    async def stall(self) -> None:
        self._client.stall()

    async def resume(self) -> None:
        self._client.resume()


class MemoryNet(Net):
    """In memory."""

    brief = heartbeat = 10.0
    tolerance = 0.0
    in_step = True

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork) -> None:
        super().__init__(nursery)
        self.network = network

    async def connect(
        self, socket_type: str = "REQ", *, routing_id: bytes | None = None
    ) -> MemoryPlain:
        return MemoryPlain(self.network.connect(socket_type=socket_type, routing_id=routing_id))

    async def connect_dealer(self) -> MemoryPlain:
        return await self.connect("DEALER")

    async def connect_mortal(
        self, socket_type: str = "REQ", *, routing_id: bytes | None = None
    ) -> MemoryPlain:
        return await self.connect(socket_type, routing_id=routing_id)

    async def connect_and_fall_silent(self, *frames: bytes) -> object:
        client = self.network.connect()
        client.send(*frames)
        await trio.testing.wait_all_tasks_blocked()
        self.network.cut(client)
        return client

    def open_client(self, **options: Any) -> Any:
        return trioreq.open_client(self.network, **options)

    def _address(self) -> MemoryNetwork:
        return self.network


class WirePlain:
    """A socket of libzmq."""

    def __init__(self, socket: ClientSocket, socket_type: str) -> None:
        self._socket = socket
        self._before = () if socket_type == "REQ" else (b"",)

    async def send_raw(self, *frames: bytes) -> None:
        await self._socket.send(*frames)

    async def receive_raw(self) -> list[bytes]:
        return await self._socket.receive()

    async def send(self, *frames: bytes) -> None:
        await self._socket.send(*self._before, *frames)

    async def receive(self) -> list[bytes]:
        return (await self._socket.receive())[len(self._before) :]

    async def close(self) -> None:
        self._socket.close()


class WireMortal:
    """A socket of libzmq in a process of its own; what it says is ASCII."""

    def __init__(self, peer: ClientProcess, socket_type: str) -> None:
        self._peer = peer
        self._before = () if socket_type == "REQ" else ("",)

    async def send(self, *frames: bytes) -> None:
        await self._peer.send(*self._before, *(frame.decode() for frame in frames))

    async def receive(self) -> list[bytes]:
        frames = (await self._peer.receive())[len(self._before) :]
        return [frame.encode() for frame in frames]

    async def close(self) -> None:
        await self._peer.close()

    async def crash(self) -> None:
        self._peer.kill()
        await self._peer.process.wait()

    async def stall(self) -> None:
        self._peer.stop()

    async def resume(self) -> None:
        self._peer.resume()


class WireNet(Net):
    """On real sockets."""

    brief = 0.2
    heartbeat = 0.5  # long enough for a machine that is busy
    tolerance = 5.0
    in_step = False

    def __init__(self, nursery: trio.Nursery, addr: str, clients: Any) -> None:
        super().__init__(nursery)
        self._addr = addr
        self._clients = clients

    async def connect(
        self, socket_type: str = "REQ", *, routing_id: bytes | None = None
    ) -> WirePlain:
        options = {"REQ_RELAXED": 1} if socket_type == "REQ" else {}
        kind = getattr(zmq, socket_type)
        socket = self._clients.connect(self._address(), kind, routing_id or b"", **options)
        return WirePlain(socket, socket_type)

    async def connect_dealer(self) -> WirePlain:
        return await self.connect("DEALER")

    async def connect_mortal(
        self, socket_type: str = "REQ", *, routing_id: bytes | None = None
    ) -> WireMortal:
        peer = await self._nursery.start(self._run_peer)
        options = {"REQ_RELAXED": 1} if socket_type == "REQ" else {}
        own = (routing_id or b"").decode()
        await peer.connect(self._address(), socket_type, own, **options)
        return WireMortal(peer, socket_type)

    async def connect_and_fall_silent(self, *frames: bytes) -> object:
        peer = RawPeer(self._address())
        self._nursery.start_soon(self._close_at_the_end, peer)
        await trio.to_thread.run_sync(peer.shake_hands, b"REQ")
        peer.send(message(b"", *frames))
        return peer

    def open_client(self, **options: Any) -> Any:
        return trioreq.open_client(self._address(), **options)

    def _address(self) -> str:
        """As bound by the first server: later ones are to be found there too."""
        return self.server.endpoints[0] if hasattr(self, "server") else self._addr

    async def _run_peer(self, task_status: trio.TaskStatus[ClientProcess]) -> None:
        async with open_client_process() as peer:
            task_status.started(peer)
            await trio.sleep_forever()

    async def _close_at_the_end(self, peer: RawPeer) -> None:
        with peer:
            await trio.sleep_forever()


@asynccontextmanager
async def open_net(addr: str) -> AsyncIterator[Net]:
    """A place to meet, in memory or at an address; all that lives there ends with the block."""
    if addr == "memory":
        with trio.fail_after(1e6):
            async with (
                open_memory_network(raise_handler_errors=False) as network,
                trio.open_nursery() as nursery,
            ):
                yield MemoryNet(nursery, network)
                nursery.cancel_scope.cancel()
        return
    with trio.fail_after(LIMIT), open_clients() as clients:
        async with trio.open_nursery() as nursery:
            yield WireNet(nursery, addr, clients)
            nursery.cancel_scope.cancel()
