"""Sockets that listen for the processes of one server.

A tcp address has a socket for each process (SO_REUSEPORT), and the kernel chooses one of them for
each new connection. An ipc address, and a socket that the service manager has passed, has one that
all processes share. The process that has opened them keeps them open, so connections that wait in
the queue of a process that has died are accepted by its successor.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from .._errors import EndpointError
from . import endpoints, linux
from .server_sockets import BACKLOG, bind


class Listener:
    """The sockets of one address.

    Args:
        sockets: One for each process, or one for all.
        own: Whether they were opened here, and nothing else has them.

    Attributes:
        endpoint: The address as bound.
        shared_out: Whether the kernel chooses among several sockets.
    """

    def __init__(self, sockets: Sequence[socket.socket], *, own: bool) -> None:
        self._sockets = sockets
        self._own = own
        self.endpoint = endpoints.bound(endpoints.of_socket(sockets[0]))
        self.shared_out = len(sockets) > 1

    def of(self, place: int) -> socket.socket:
        """The socket of a process."""
        return self._sockets[place % len(self._sockets)]

    def refuse_connections(self) -> None:
        """Refuse new connections, and those that wait; not if the service manager has the socket.

        It starts the server again for them.
        """
        if not self._own:
            return
        for one in self._sockets:
            linux.refuse_connections(one.fileno())
            for connection in waiting(one):
                connection.close()


def waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that the kernel holds for a socket."""
    listener.setblocking(False)
    while True:
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # there are no more, or no descriptor is free
            return
        yield connection


@contextmanager
def open_listeners(
    addresses: Iterable[str], passed: Iterable[socket.socket], processes: int
) -> Iterator[list[Listener]]:
    """Listen at addresses, and at sockets that listen already.

    Args:
        addresses: Endpoints of tcp and ipc.
        passed: The sockets.
        processes: How many there are.

    Raises:
        EndpointError: An address cannot be bound.
    """
    with ExitStack() as stack:
        listeners = []
        for one in passed:
            stack.enter_context(one)
            listeners.append(Listener([one], own=False))
        for addr in addresses:
            path = None if addr == endpoints.ANY_IPC else endpoints.check(addr)
            try:
                if addr.startswith("ipc://"):
                    listeners.append(_listen_ipc(addr, path, stack))
                else:
                    listeners.append(_listen_tcp(addr, processes, stack))
            except OSError as error:
                raise EndpointError(endpoints.explain(addr, error.errno)) from error
        yield listeners


def _listen_ipc(addr: str, path: Path | None, stack: ExitStack) -> Listener:
    if addr == endpoints.ANY_IPC:
        directory = tempfile.TemporaryDirectory(prefix="trioreq-")
        path = endpoints.check(f"ipc://{stack.enter_context(directory)}/socket")
    one = stack.enter_context(socket.socket(socket.AF_UNIX))
    if path is None:
        one.bind(b"\0" + os.fsencode(addr.removeprefix("ipc://@")))
    else:
        path.unlink(missing_ok=True)  # of a server that has died
        one.bind(os.fspath(path))
        stack.callback(endpoints.BoundFile(path).remove)
    one.listen(BACKLOG)
    return Listener([one], own=True)


def _listen_tcp(addr: str, processes: int, stack: ExitStack) -> Listener:
    host, port = _numeric(addr)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    with socket.socket(family) as probe:  # other servers of this user could share the address too
        _prepare(probe)
        probe.bind(address)
    sockets = []
    for _ in range(processes):
        one = stack.enter_context(socket.socket(family))
        _prepare(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
        address = one.getsockname()  # with the port that was chosen for port 0
        sockets.append(one)
    for one in sockets:
        one.listen(BACKLOG)
    return Listener(sockets, own=True)


def _prepare(one: socket.socket) -> None:
    """Set what libzmq sets."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def _numeric(addr: str) -> tuple[str, int]:
    """The address that libzmq binds for an endpoint, which may name a host or an interface."""
    host, _, port = addr.removeprefix("tcp://").rpartition(":")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        bound = bind(router, f"tcp://{host}:*")
    found = bound.removeprefix("tcp://").rpartition(":")[0]
    return found.removeprefix("[").removesuffix("]"), 0 if port == "*" else int(port)
