"""A network in memory, and a server on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn

import trio

from .._checks import check_duration, check_in_trio, check_instance
from .._client.client import Client
from .._errors import EndpointError
from .._nursery import open_own_nursery
from .._server.handlers import Handler
from .._server.observer import Observer
from .._server.open_server import open_server
from .._server.pending_request import PendingRequest
from .._server.server import Server
from .._transport.allow_list import check_user_id
from .._transport.network import Network
from .._transport.server_sockets import IN_LIBZMQ
from .._workers import KillableWorkers
from ._client import SOCKET_TYPES, MemoryClient, MemoryLine, body_of
from ._inline import InlineThreads, InlineWorkers
from ._libzmq import Connection, MemorySockets, Peer
from ._schedule import scheduled
from ._ways import open_timers


class HandlerErrors(Observer):
    """Raises the exceptions of handlers in the block of the network."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def failed(self, request: PendingRequest, error: BaseException) -> None:
        """As in `Observer`."""
        self._nursery.start_soon(self._raise, error)

    def session_failed(self, client: object, error: BaseException) -> None:
        """As in `Observer`."""
        self._nursery.start_soon(self._raise, error)

    async def _raise(self, error: BaseException) -> NoReturn:
        if isinstance(error, Exception):
            raise error
        # One that must not be raised here, such as a Cancelled that is not the handler's own.
        raise RuntimeError(f"the handler failed with {type(error).__name__}") from error


class MemoryNetwork(Network):
    """A network without a kernel, with room for one server, and others that drain.

    `trioreq.serve` and `trioreq.open_client` accept it instead of an address.
    `open_memory_network` makes it, and `open_memory_server` with a server on it.

    Attributes:
        server: The server that `open_memory_server` has started.
    """

    server: Server

    def __init__(self, nursery: trio.Nursery, *, raise_handler_errors: bool = True) -> None:
        self._nursery = nursery
        self._observers = [HandlerErrors(nursery)] if raise_handler_errors else []
        self._timers = open_timers()
        self._sockets: MemorySockets | None = None
        self._bound = trio.lowlevel.ParkingLot()  # lines wait here for a server
        nursery.start_soon(self._timers.run)

    def __str__(self) -> str:
        return "memory"

    # For tests.

    def connect(
        self,
        *,
        routing_id: bytes | None = None,
        socket_type: str = "REQ",
        user_id: str | None = None,
        reuse: MemoryClient | None = None,
    ) -> MemoryClient:
        """Connect a plain client.

        Args:
            routing_id: An explicit one, 1 to 255 bytes that do not begin with a zero byte; None for
                an automatic one.
            socket_type: The socket type that it announces, ``REQ`` or ``DEALER``.
            user_id: Its user id, as if it was authenticated.
            reuse: A client that has disconnected, whose descriptor at the server the new one
                gets. Otherwise it gets the lowest free one, as from a kernel.

        Raises:
            ConnectionRefusedError: No server is bound.
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of its range.
        """
        expected = f"one of {SOCKET_TYPES}"
        check_instance("socket_type", socket_type, str, expected)
        if socket_type not in SOCKET_TYPES:
            raise ValueError(f"socket_type must be {expected}, got {socket_type!r}")
        if routing_id is not None:
            expected = "1 to 255 bytes that do not begin with a zero byte, or None"
            check_instance("routing_id", routing_id, bytes, expected)
            if not 0 < len(routing_id) < 256 or routing_id.startswith(b"\0"):
                raise ValueError(f"routing_id must be {expected}, got {routing_id!r}")
        if user_id is not None:
            check_user_id(user_id, "user_id")
        if reuse is not None:
            check_instance("reuse", reuse, MemoryClient, "a MemoryClient or None")
        client = MemoryClient(socket_type)
        client.connection = self.open_connection(
            client,
            socket_type,
            wanted=routing_id,
            user_id=user_id,
            descriptor=None if reuse is None else reuse.connection.descriptor,
        )
        return client

    def cut(self, client: MemoryClient | Client) -> None:
        """Cut the connection: nothing arrives on either side, not even its end."""
        connection = _connection(client)
        connection.to_server.block("cut")
        connection.to_client.block("cut")
        connection.silence()
        if isinstance(client, Client) and _line(client).mended.is_set():
            _line(client).mended = trio.Event()

    def mend(self, client: MemoryClient | Client) -> None:
        """Undo a `cut`: everything that was sent meanwhile arrives."""
        connection = _connection(client)
        connection.hear_again()
        connection.to_server.clear("cut")
        connection.to_client.clear("cut")
        if isinstance(client, Client):
            _line(client).mended.set()

    def delay(self, client: MemoryClient | Client, seconds: float) -> None:
        """Delay everything that is sent from now on by this time, in each direction."""
        check_duration("seconds", seconds)
        connection = _connection(client)
        connection.to_server.delay = connection.to_client.delay = seconds
        if isinstance(client, Client):
            _line(client).delay = seconds

    def sent_to(self, client: MemoryClient | Client) -> list[list[bytes]]:
        """The bodies of all messages that the server has sent to a client."""
        return [body_of(frames) for frames in _connection(client).sent]

    def held_for(self, client: MemoryClient | Client) -> list[list[bytes]]:
        """The bodies of those that have not arrived yet, and still may."""
        return [body_of(frames) for frames in _connection(client).held]

    # For servers and clients.

    def bind(
        self, *, heartbeat: float | None, max_message_size: int, send_queue: int
    ) -> MemorySockets:
        """Bind a server to this network (`serve` calls this)."""
        if self._sockets is not None and not self._sockets.draining:
            raise EndpointError("a server is bound to this network already: stop it first")
        sockets = self._sockets = MemorySockets(
            self._timers,
            heartbeat=heartbeat,
            max_message_size=max_message_size,
            send_queue=min(send_queue, IN_LIBZMQ),
            closed=lambda: self._closed(sockets),
        )
        self._bound.unpark_all()
        return sockets

    @property
    def thread_pool(self) -> Callable[..., InlineThreads]:
        """Runs plain functions in the event loop (for `serve`)."""
        return partial(InlineThreads, outer=self._nursery)

    @asynccontextmanager
    async def open_workers(
        self, handler: Handler, workers: KillableWorkers
    ) -> AsyncIterator[InlineWorkers]:
        """Run plain functions of `KillableWorkers` in the event loop (for `serve`)."""
        yield InlineWorkers(handler, workers)

    @property
    def observers(self) -> Sequence[Observer]:
        """Raises errors of handlers in the test (for `serve`)."""
        return self._observers

    def line(self, *, heartbeat: float | None, max_message_size: int) -> MemoryLine:
        """Make a client's line to the server (`open_client` calls this)."""

        async def connect(line: MemoryLine) -> Connection:
            while (is_cut := not line.mended.is_set()) or self._refusal() is not None:
                await (line.mended.wait() if is_cut else self._bound.park())
            return self.open_connection(
                line, "DEALER", heartbeat=heartbeat, max_message_size=max_message_size
            )

        return MemoryLine(connect)

    def open_connection(
        self,
        peer: Peer,
        socket_type: str,
        *,
        descriptor: int | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Connection:
        """Connect to the bound server."""
        sockets, refusal = self._sockets, self._refusal()
        if sockets is None or refusal is not None:
            raise ConnectionRefusedError(refusal)
        connection = Connection(
            sockets,
            peer,
            descriptor=sockets.free_descriptor(descriptor),
            socket_type=socket_type,
            **options,
        )
        sockets.accept(connection)
        return connection

    def _refusal(self) -> str | None:
        """Why no connection can be made now; None if one can."""
        if self._sockets is None:
            return "no server is bound to this network"
        if self._sockets.draining:
            return "the server drains, and accepts no more connections"
        return None

    def _closed(self, sockets: MemorySockets) -> None:
        if self._sockets is sockets:  # else it was draining, and there is another server
            self._sockets = None


def _line(client: Client) -> MemoryLine:
    check_instance("client", client, Client, "a MemoryClient or a Client of open_client")
    line = client._connections.current.line  # noqa: SLF001  # a Client has no public name for it
    if not isinstance(line, MemoryLine):
        raise TypeError("client must be connected to a MemoryNetwork, got another client")
    return line


def _connection(client: MemoryClient | Client) -> Connection:
    return client.connection if isinstance(client, MemoryClient) else _line(client).connection


@asynccontextmanager
async def open_memory_network(
    *, seed: int = 0, raise_handler_errors: bool = True
) -> AsyncIterator[MemoryNetwork]:
    """Open a network in memory; `trioreq.serve` and `trioreq.open_client` take it as an address.

    Args:
        seed: The seed for the order in which trio runs tasks that are ready at the same time, and
            for Python's `random`, while the network is open. So each run of a test is the same,
            and another seed gives another run.
        raise_handler_errors: Whether an exception of a handler ends the block and is raised there.
            Otherwise only its client gets an error, as from a real server. `trioreq.ReplyError`
            never ends the block.

    Example:
        >>> async def main():
        ...     async with open_memory_network() as net, trio.open_nursery() as nursery:
        ...         await nursery.start(trioreq.serve, handler, net)
        ...         async with trioreq.open_client(net) as client:
        ...             print(await client.request(b"hello"))
        ...         nursery.cancel_scope.cancel()
    """
    check_in_trio("trio.run(main), and open_memory_network in main")
    check_instance("raise_handler_errors", raise_handler_errors, bool, "a bool")
    with scheduled(seed):
        async with open_own_nursery() as nursery:
            yield MemoryNetwork(nursery, raise_handler_errors=raise_handler_errors)


@asynccontextmanager
async def open_memory_server(
    handler: Handler,
    *,
    seed: int = 0,
    raise_handler_errors: bool = True,
    **options: Any,  # noqa: ANN401  # of `serve`
) -> AsyncIterator[MemoryNetwork]:
    """Serve on a new network in memory; leaving the block stops the server.

    It is the server of `trioreq.serve`; only libzmq is replaced. Plain functions run in the event
    loop: they take no time, except in `sleep`.

    Args:
        handler: As for `trioreq.serve`.
        seed: As for `open_memory_network`.
        raise_handler_errors: As for `open_memory_network`.
        options: As for `trioreq.serve`.

    Example:
        >>> async def test_a_crash_cancels(autojump_clock):
        ...     async with open_memory_server(handler) as net:
        ...         client = net.connect()
        ...         client.send(b"work")
        ...         client.crash()
    """
    async with (
        open_memory_network(seed=seed, raise_handler_errors=raise_handler_errors) as net,
        open_server(handler, net, **options) as net.server,
    ):
        yield net
