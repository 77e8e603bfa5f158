"""Clients of libzmq: sockets in this process, and processes with sockets, which can be killed."""

from __future__ import annotations

import json
import os
import select
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio
import zmq

from .children import Child, open_process
from .processes import python_module


class ClientProcess(Child):
    """A process that runs `harness.programs.client`: a client with any number of sockets."""

    async def connect(
        self,
        endpoint: str,
        kind: str = "REQ",
        routing_id: str = "",
        *,
        number: int = 0,
        **options: int,
    ) -> None:
        """Connect a socket of this number; `options` are those of a socket, such as ``LINGER``."""
        await self._order("connect", number, kind, endpoint, routing_id, options)

    async def bind(self, kind: str, endpoint: str = "tcp://127.0.0.1:*", *, number: int = 0) -> str:
        """Bind a socket instead, as a server does; returns its endpoint."""
        (bound,) = await self._order("bind", number, kind, endpoint)
        return bound

    async def send(self, *frames: str, number: int = 0) -> None:
        """Send a message."""
        await self._order("send", number, *frames)

    async def receive(self, number: int = 0) -> list[str]:
        """Wait for a message; returns its frames."""
        return await self._order("receive", number)

    async def close(self, number: int = 0) -> None:
        """Close a socket."""
        await self._order("close", number)

    def send_blocking(self, *frames: str, number: int = 0) -> None:
        """Send a message, and block this process's trio loop meanwhile."""
        os.write(self._stdin.fileno(), json.dumps(["send", number, *frames]).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            assert select.select([self._stdout.fileno()], [], [], 5)[0]
            answer += os.read(self._stdout.fileno(), 100)

    def kill_blocking(self) -> None:
        """SIGKILL, and wait for the end, and block this process's trio loop meanwhile."""
        descriptor = os.pidfd_open(self.pid)
        self.kill()
        select.select([descriptor], [], [], 5)
        os.close(descriptor)

    async def _order(self, *order: object) -> list[str]:
        answer: list[str] = json.loads(await self.ask(json.dumps(order)))
        return answer


@asynccontextmanager
async def open_client_process(inside: Sequence[str] = ()) -> AsyncIterator[ClientProcess]:
    """A client process, killed at the end.

    Args:
        inside: Words before the command, such as ``ip netns exec NAME``.
    """
    async with open_process([*inside, *python_module("harness.programs.client")]) as process:
        yield ClientProcess(process)


class ClientSocket:
    """A zmq socket of any kind, in trio."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self.raw = raw

    async def send(self, *frames: bytes) -> None:
        """Send a message, once there is room for it."""
        await self._wait(zmq.POLLOUT)
        self.raw.send_multipart(frames, zmq.NOBLOCK)

    async def receive(self) -> list[bytes]:
        """Wait for a message; returns its frames."""
        await self._wait(zmq.POLLIN)
        return self.raw.recv_multipart(zmq.NOBLOCK)

    async def request(self, *frames: bytes) -> list[bytes]:
        """Send a message, and wait for the next that comes."""
        await self.send(*frames)
        return await self.receive()

    def close(self) -> None:
        """Close it, and drop what was not sent."""
        self.raw.close(linger=0)

    async def _wait(self, event: int) -> None:
        while not self.raw.getsockopt(zmq.EVENTS) & event:  # type: ignore[operator]
            await trio.lowlevel.wait_readable(self.raw.getsockopt(zmq.FD))  # type: ignore[arg-type]


class Clients:
    """Makes `ClientSocket` objects in a Context of their own."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.max_sockets = 4096
        self._sockets: list[zmq.Socket[bytes]] = []  # held: one that is collected is closed

    def connect(
        self, endpoint: str, kind: int = zmq.REQ, routing_id: bytes = b"", **options: int
    ) -> ClientSocket:
        """Connect a socket; `options` are those of a socket, such as ``RCVHWM``."""
        raw = self._context.socket(kind)
        self._sockets.append(raw)
        raw.linger = 0
        if routing_id:
            raw.routing_id = routing_id
        for name, value in options.items():
            raw.setsockopt(getattr(zmq, name), value)
        raw.connect(endpoint)
        return ClientSocket(raw)

    def close(self) -> None:
        """Close all sockets, and the Context."""
        self._context.destroy(linger=0)


@contextmanager
def open_clients() -> Iterator[Clients]:
    """Clients in this process, closed at the end."""
    clients = Clients()
    try:
        yield clients
    finally:
        clients.close()
