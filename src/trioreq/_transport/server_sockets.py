"""The three sockets of a server: its ROUTER, the ROUTER's monitor, and its gate's."""

from __future__ import annotations

import ctypes
import resource
import secrets
import sys
from collections.abc import Sequence
from typing import Protocol

import trio
import zmq

from .._errors import EndpointError
from .._options import heartbeat_times
from . import endpoints, linux
from .curve import KeyPair
from .linux import KernelCounters
from .zsocket import ZSocket

DOMAIN = b"trioreq"
GATE = "inproc://zeromq.zap.01"  # libzmq looks for it here, once a Context
MONITOR = "inproc://trioreq.monitor"
BACKLOG = 4096  # connections that the kernel may hold for libzmq; it caps this itself
HANDSHAKE = 10.0  # seconds that a connection has to get through its handshake in
SPARE = 64  # descriptors that no connection is to have, of a limit that is not very low
LINGER = 0.5  # seconds that the last words have to go out in


class Connection(Protocol):
    """A connection that is held, whoever has its descriptor later."""

    @property
    def address(self) -> str:
        """Where its peer is; on ipc, the user that it runs as."""

    def shut_down(self) -> None:
        """End it."""

    def close(self) -> None:
        """Let go of it; it lives on."""


class Sockets(Protocol):
    """What a server is connected to the world with.

    Attributes:
        router: Messages, each behind the routing id of its connection.
        monitor: Which descriptors were accepted and disconnected.
        gate: Who may come in (ZeroMQ RFC 27).
        endpoints: The addresses as really bound.
        room: Connections are to have descriptors below this one.
        max_message_size: Bytes that a frame may have.
        meter: What the kernel counts of the connections; None if there is no kernel.
    """

    router: ZSocket
    monitor: ZSocket
    gate: ZSocket
    endpoints: tuple[str, ...]
    room: int
    max_message_size: int
    meter: KernelCounters | None

    def hold(self, descriptor: int) -> Connection | None:
        """Hold the connection that has a descriptor now; None if it has none."""

    async def aclose(self) -> None:
        """Let what was handed over go out, for a bounded time, and close."""


class BoundSockets:
    """Those of libzmq.

    Args:
        addrs: Endpoints to bind, tcp and ipc.
        heartbeat: Seconds in which a silent peer is declared gone; None for no heartbeats.
        max_message_size: Bytes in a frame; a peer that sends more is disconnected.
        send_queue: Messages that one connection may have waiting to go out.
        curve: The server's keys, for CURVE.
        plain: Whether it is PLAIN.

    Raises:
        EndpointError: An address cannot be bound.
    """

    def __init__(
        self,
        addrs: Sequence[str],
        *,
        heartbeat: float | None,
        max_message_size: int,
        send_queue: int,
        curve: KeyPair | None = None,
        plain: bool = False,
    ) -> None:
        if not addrs:
            raise EndpointError(
                f"no address to serve: give at least one, such as {endpoints.EXAMPLES}"
            )
        self._files: list[endpoints.BoundFile] = []
        self.room = _room()
        self.max_message_size = max_message_size
        self.meter: KernelCounters | None = KernelCounters()
        # One I/O thread: with more, libzmq does not promise the order that presence needs.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._router = self._open_router(heartbeat, max_message_size, send_queue)
            self._router.plain_server = plain
            if curve is not None:
                self._router.curve_server = True
                self._router.curve_secretkey = curve.secret.encode()
            self.router = ZSocket.of(self._router)
            self.monitor = ZSocket.of(self._open_monitor())
            self.gate = ZSocket.of(self._open_gate())
            self._router.ipv6 = any("[" in addr for addr in addrs)
            self.endpoints = tuple(self._bind(addr) for addr in addrs)
        except BaseException:
            self._remove_files()
            self._context.destroy(linger=0)
            raise

    def _open_router(
        self, heartbeat: float | None, max_message_size: int, send_queue: int
    ) -> zmq.Socket[bytes]:
        _hide_routing_ids()
        router = self._context.socket(zmq.ROUTER)
        router.zap_domain = DOMAIN
        router.router_mandatory = True
        # Before it is bound: a connection that breaks while the socket is closed takes the linger
        # that its listener was bound with. Without a limit it can wait for ever.
        router.linger = round(LINGER * 1000)
        router.sndhwm = send_queue
        router.maxmsgsize = max_message_size
        router.backlog = BACKLOG
        router.handshake_ivl = round(HANDSHAKE * 1000)
        if heartbeat is not None:
            # Who stops right after a PONG is sent the next PING after the interval, and has failed
            # to answer it after the timeout.
            interval, timeout = heartbeat_times(heartbeat)
            router.heartbeat_ivl = max(1, round(interval * 1000))
            router.heartbeat_timeout = max(1, round(timeout * 1000))
        router.monitor(MONITOR, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        return router

    def _open_monitor(self) -> zmq.Socket[bytes]:
        monitor = self._context.socket(zmq.PAIR)
        monitor.rcvhwm = 0  # a full monitor would stop libzmq's I/O thread
        monitor.linger = 0
        monitor.connect(MONITOR)
        return monitor

    def _open_gate(self) -> zmq.Socket[bytes]:
        gate = self._context.socket(zmq.ROUTER)
        gate.linger = 0
        gate.bind(GATE)
        return gate

    def _bind(self, addr: str) -> str:
        path = endpoints.check(addr)
        try:
            self._router.bind(addr)
        except zmq.ZMQError as error:
            raise EndpointError(endpoints.explain(addr, error.errno)) from error
        if path is not None:
            self._files.append(endpoints.BoundFile(path))
        bound: bytes = self._router.get(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return bound.decode().rstrip("\0")

    def hold(self, descriptor: int) -> Connection | None:
        """Hold the connection that has a descriptor now; None if it has none."""
        return linux.duplicate(descriptor)

    async def aclose(self) -> None:
        """Let what was handed over go out, for a bounded time, and close."""
        self._remove_files()
        self.gate.close()
        self._router.disable_monitor()
        self.monitor.close()
        self.router.close()
        with trio.CancelScope(shield=True):  # bounded by the linger
            await trio.to_thread.run_sync(self._context.term)

    def _remove_files(self) -> None:
        for file in self._files:
            file.remove()


def _hide_routing_ids() -> None:
    """Let the next ROUTER's automatic routing ids begin where nobody can know.

    libzmq draws the first from C's `rand()`, which it does not seed, so that it is the same in
    every process; a peer that announces the next one by name aborts libzmq 4.3.5. What else uses
    `rand()` in this process gets other numbers than without a seed.
    """
    ctypes.CDLL(None).srand(secrets.randbits(32))


def _room() -> int:
    """The descriptor from which on they are spared.

    The kernel gives the lowest that is free, so a connection that has this one shows that they
    run out. At the limit libzmq could accept nobody, and would try again without a pause; nor
    could anything else in the process open a file. So some are kept for those who come to be
    turned away, and for the rest of the program.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - min(SPARE, soft // 4)
