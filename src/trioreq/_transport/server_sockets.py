"""The three sockets of a server: its ROUTER, the ROUTER's monitor, and its ZAP handler's."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import zmq

from .._errors import EndpointError
from .._protocol.frame_sizes import SENT_IN_HANDSHAKE, on_wire
from .._protocol.zap import Mechanism
from . import endpoints, linux
from .curve_keys import KeyPair
from .heartbeats import heartbeat_times
from .linux import KernelCounters, Signs
from .zsocket import ZSocket, open_monitor, set_heartbeat, terminate

DOMAIN = b"trioreq"
ZAP = "inproc://zeromq.zap.01"  # libzmq sends ZAP requests here, in each Context
MONITOR = "inproc://trioreq.monitor"
MONITORED = (
    zmq.EVENT_LISTENING
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
BACKLOG = 4096  # connections that the kernel may hold for libzmq; it caps this itself
HANDSHAKE = 10.0  # seconds that a handshake may take
SPARE = 64  # descriptors that no connection gets, unless the limit is very low
# Messages that libzmq holds for one connection. It accepts more when it has sent half of them: with
# a small number a slow client is detected sooner.
IN_LIBZMQ = 256
LINGER = 0.5  # seconds for sending the last messages


class HeldConnection(Protocol):
    """A connection that is held by a descriptor of our own.

    Attributes:
        descriptor: The descriptor that holds it.
    """

    descriptor: int

    @property
    def address(self) -> str:
        """The peer's IP address; on ipc, the user that it runs as."""

    def shut_down(self) -> None:
        """Close it."""

    def signs(self) -> Signs:
        """How it has ended, after libzmq has reported its disconnect."""

    def close(self) -> None:
        """Release it. It stays open while libzmq has it."""


class Sockets(Protocol):
    """A server's sockets: those of libzmq, or those of a network in memory.

    Attributes:
        router: Messages, each with the routing id of its connection.
        monitor: The events of connections and handshakes.
        zap: ZAP requests and replies (ZeroMQ RFC 27).
        endpoints: The addresses as bound.
        room: Connections get descriptors below this one.
        max_message_size: Bytes that a frame may have.
        send_queue: Messages that libzmq holds for one connection; others wait in the outbox.
        counters: The kernel's counters of connections; None if it has none.
    """

    router: ZSocket
    monitor: ZSocket
    zap: ZSocket
    endpoints: tuple[str, ...]
    room: int
    max_message_size: int
    send_queue: int
    counters: KernelCounters | None

    def hold(self, descriptor: int) -> HeldConnection | None:
        """Hold the connection that has a descriptor now; None if it has none.

        One connection at a time can be held even if the process has no free descriptor. The
        descriptor of its hold then counts as the highest of all.
        """

    def refuse_connections(self, listeners: Sequence[int]) -> None:
        """Make the system refuse new connections, as far as it can.

        Args:
            listeners: The descriptors that the monitor has reported as listening.
        """

    def replace_keys(self, keys: KeyPair, listeners: Sequence[int]) -> None:
        """Have other CURVE keys for the connections that are accepted from now on."""

    async def aclose(self) -> None:
        """Send what was handed over, for a bounded time, and close."""


class BoundSockets:
    """The sockets of libzmq.

    Args:
        addrs: Endpoints to bind, tcp and ipc, and sockets that listen already. Other processes may
            share those, so they are left as they are.
        heartbeat: Seconds after which a silent peer is disconnected; None for no heartbeats.
        max_message_size: Bytes in a frame; a peer that sends more is disconnected.
        send_queue: Maximum messages that wait to be sent on one connection.
        curve: The server's keys; None without CURVE.
        plain: Whether the mechanism is PLAIN.

    Raises:
        EndpointError: An address cannot be bound.
    """

    def __init__(
        self,
        addrs: Sequence[str | socket.socket],
        *,
        heartbeat: float | None,
        max_message_size: int,
        send_queue: int,
        curve: KeyPair | None = None,
        plain: bool = False,
    ) -> None:
        if not addrs:
            raise EndpointError(f"there must be at least one address, such as {endpoints.EXAMPLES}")
        self._files: list[endpoints.BoundFile] = []
        self._directories: list[tempfile.TemporaryDirectory[str]] = []
        self._shared: dict[int, str] = {}  # endpoints of listeners that other processes may have
        self.room = _room()
        self.max_message_size = max_message_size
        mechanism: Mechanism = "CURVE" if curve is not None else "PLAIN" if plain else "NULL"
        self._handshake = SENT_IN_HANDSHAKE[mechanism]
        self._patience = math.inf if heartbeat is None else heartbeat_times(heartbeat)[1]
        self.send_queue = min(send_queue, IN_LIBZMQ)
        self.counters = KernelCounters() if linux.LINUX else None
        # One I/O thread: with more, libzmq does not guarantee the order of events that the
        # connection table needs (A1 in docs/design.md).
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            largest = on_wire(max_message_size, encrypted=curve is not None)
            self._router = self._open_router(heartbeat, largest)
            self._router.plain_server = plain
            if curve is not None:
                self._router.curve_server = True
                self._router.curve_secretkey = curve.secret.encode()
            self.router = ZSocket.of(self._router)
            self.monitor = ZSocket.of(open_monitor(self._context, MONITOR))
            self.zap = ZSocket.of(self._open_zap())
            self.endpoints = tuple(self._bind(addr) for addr in addrs)
            self._duplicates = linux.Duplicates()
        except BaseException:
            self._remove_files()
            self._context.destroy(linger=0)
            raise

    def _open_router(self, heartbeat: float | None, largest_frame: int) -> zmq.Socket[bytes]:
        _hide_routing_ids()
        router = self._context.socket(zmq.ROUTER)
        router.zap_domain = DOMAIN
        router.router_mandatory = True  # report full queues and closed connections, do not drop
        # Before it is bound: a connection that is lost while the socket closes has the linger that
        # its listener was bound with. Without a limit it may never end.
        router.linger = round(LINGER * 1000)
        router.sndhwm = self.send_queue
        router.maxmsgsize = largest_frame
        router.backlog = BACKLOG
        router.handshake_ivl = round(HANDSHAKE * 1000)
        set_heartbeat(router, heartbeat)
        router.monitor(MONITOR, MONITORED)
        return router

    def _open_zap(self) -> zmq.Socket[bytes]:
        zap = self._context.socket(zmq.ROUTER)
        zap.linger = 0
        zap.bind(ZAP)
        return zap

    def _bind(self, addr: str | socket.socket) -> str:
        if isinstance(addr, socket.socket):
            return self._share(addr.dup())
        if addr == endpoints.ANY_IPC:
            addr = f"ipc://{self._new_directory()}/socket"
        path = endpoints.check(addr)
        try:
            bound = bind(self._router, addr)
        except OSError as error:
            raise EndpointError(endpoints.explain(addr, error.errno)) from error
        if path is not None:
            self._files.append(endpoints.BoundFile(path))
        return endpoints.bound(bound)

    def _share(self, listener: socket.socket) -> str:
        """Accept connections of a socket that listens already; libzmq closes it."""
        endpoint = endpoints.of_socket(listener)
        own = listener.detach()
        os.set_blocking(own, False)  # another process may be faster
        self._router.ipv6 = endpoints.is_ipv6(endpoint)
        try:
            self._router.setsockopt(zmq.USE_FD, own)
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            os.close(own)
            raise EndpointError(endpoints.explain(endpoint, error.errno)) from error
        finally:
            self._router.setsockopt(zmq.USE_FD, -1)
        self._shared[own] = endpoint
        return endpoints.bound(endpoint)

    def replace_keys(self, keys: KeyPair, listeners: Sequence[int]) -> None:
        """Have other CURVE keys for the connections that are accepted from now on.

        libzmq gives a listener the key that is set when it is bound. So each listener gets a
        successor on the same socket, and accepts no more.

        Raises:
            RuntimeError: There is no CURVE, or the system cannot do it. Then all is as before.
        """
        if not self._router.curve_server:
            raise RuntimeError("there are no keys to replace: the server was started without curve")
        with ExitStack() as stack:
            try:
                successors = [
                    stack.enter_context(socket.socket(fileno=os.dup(listener)))
                    for listener in listeners
                ]
                is_possible = linux.ignore_connections(listeners)
            except OSError as error:  # no descriptor is free
                raise RuntimeError(f"keys cannot be replaced now: {error.strerror}") from error
            if not is_possible:
                raise RuntimeError("keys can be replaced on Linux with /proc: restart the server")
            self._router.curve_secretkey = keys.secret.encode()
            for successor in successors:
                self._share(successor)

    def _new_directory(self) -> str:
        """Make a directory for one socket file.

        Without TMPDIR, libzmq would make it in the working directory, with a relative name.
        """
        try:
            where = Path(tempfile.gettempdir()).absolute()
            self._directories.append(tempfile.TemporaryDirectory(prefix="trioreq-", dir=where))
        except OSError as error:
            raise EndpointError(endpoints.explain(endpoints.ANY_IPC, error.errno)) from error
        return self._directories[-1].name

    def hold(self, descriptor: int) -> HeldConnection | None:
        """Hold the connection that has a descriptor now; None if it has none."""
        return linux.hold(descriptor, self._duplicates, self._handshake, self._patience)

    def refuse_connections(self, listeners: Sequence[int]) -> None:
        """Make the system refuse connections: on tcp the kernel, on ipc by removing the file.

        New connections to a shared listener are left to the other processes that have it.
        """
        self._remove_files()
        for listener in listeners:
            if listener in self._shared:
                with suppress(OSError):  # the router closes what is accepted
                    linux.ignore_connections([listener])
            else:
                linux.refuse_connections(listener)

    async def aclose(self) -> None:
        """Send what was handed over, for a bounded time, and close."""
        self._remove_files()
        self.zap.close()
        self._router.disable_monitor()
        self.monitor.close()
        self.router.close()
        self._duplicates.close()
        await terminate(self._context)

    def _remove_files(self) -> None:
        for file in self._files:
            file.remove()
        for directory in self._directories:
            directory.cleanup()


def bind(router: zmq.Socket[bytes], addr: str) -> str:
    """Bind a socket, and return its endpoint, with the address and port that were chosen.

    Raises:
        OSError: That is not possible.
    """
    router.ipv6 = endpoints.is_ipv6(addr)  # an IPv4 address means the same whatever else is bound
    try:
        try:
            router.bind(addr)
        except zmq.ZMQError as error:
            if error.errno != errno.ENODEV or router.ipv6:
                raise
            router.ipv6 = True  # it may be a name that has IPv6 addresses only
            router.bind(addr)
    except zmq.ZMQError as error:
        raise OSError(error.errno, error.strerror) from error
    bound: bytes = router.get(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return bound.decode().rstrip("\0")


def _hide_routing_ids() -> None:
    """Make the automatic routing ids of the next ROUTER unpredictable.

    libzmq takes the first from C's `rand()` without a seed, so it is the same in every process, and
    a peer that sets the next one as its routing id makes libzmq 4.3.5 abort. The seed changes the
    numbers of other users of `rand()` in this process.
    """
    ctypes.CDLL(None).srand(secrets.randbits(32))


def _room() -> int:
    """The lowest descriptor that is reserved.

    The kernel assigns the lowest free one, so a connection with this one shows that few are left.
    At the limit libzmq could not accept, and would retry without a pause, and the rest of the
    process could not open files. So some are reserved for the program, and for connections that are
    accepted in order to be closed.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - min(SPARE, soft // 4)
