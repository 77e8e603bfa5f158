"""Clients: in this process, over a raw socket, and in processes that can be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
import zmq

PEER = Path(__file__).with_name("peer.py")


class Peer:
    """A client process with any number of sockets."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.pid = process.pid
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._buffer = b""

    async def _tell(self, *command: object) -> list[str]:
        await self._stdin.send_all(json.dumps(command).encode() + b"\n")
        while b"\n" not in self._buffer:
            more = await self._stdout.receive_some()
            assert more, "the client process has died"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: list[str] = json.loads(line)
        return answer

    async def connect(
        self,
        endpoint: str,
        kind: str = "REQ",
        routing_id: str = "",
        *,
        number: int = 0,
        **options: int,
    ) -> None:
        await self._tell("connect", number, kind, endpoint, routing_id, options)

    async def send(self, *frames: str, number: int = 0) -> None:
        await self._tell("send", number, *frames)

    async def receive(self, number: int = 0) -> list[str]:
        return await self._tell("receive", number)

    async def close(self, number: int = 0) -> None:
        await self._tell("close", number)

    def send_blocking(self, *frames: str, number: int = 0) -> None:
        """Send, while this process's trio loop is held up."""
        os.write(self._stdin.fileno(), json.dumps(["send", number, *frames]).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            assert select.select([self._stdout.fileno()], [], [], 5)[0]
            answer += os.read(self._stdout.fileno(), 100)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_blocking(self) -> None:
        """SIGKILL, and wait for the end, while this process's trio loop is held up."""
        descriptor = os.pidfd_open(self.pid)
        self.kill()
        select.select([descriptor], [], [], 5)
        os.close(descriptor)

    def stop(self) -> None:
        """SIGSTOP: it neither reads nor answers heartbeats, and its connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


@asynccontextmanager
async def open_peer(inside: Sequence[str] = ()) -> AsyncIterator[Peer]:
    """A client process, killed at the end if it still lives; its command is put behind `inside`."""
    process = await trio.lowlevel.open_process(
        [*inside, sys.executable, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()


class ClientSocket:
    """A zmq socket of any kind, in trio."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self.raw = raw

    async def send(self, *frames: bytes) -> None:
        await self._wait(zmq.POLLOUT)
        self.raw.send_multipart(frames, zmq.NOBLOCK)

    async def receive(self) -> list[bytes]:
        await self._wait(zmq.POLLIN)
        return self.raw.recv_multipart(zmq.NOBLOCK)

    async def request(self, *frames: bytes) -> list[bytes]:
        await self.send(*frames)
        return await self.receive()

    def close(self) -> None:
        self.raw.close(linger=0)

    async def _wait(self, event: int) -> None:
        while not self.raw.getsockopt(zmq.EVENTS) & event:  # type: ignore[operator]
            await trio.lowlevel.wait_readable(self.raw.getsockopt(zmq.FD))  # type: ignore[arg-type]


class Clients:
    """Makes `ClientSocket` objects in a Context of their own."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.max_sockets = 4096
        self._sockets: list[zmq.Socket[bytes]] = []  # held, so that none closes before its time

    def connect(
        self, endpoint: str, kind: int = zmq.REQ, routing_id: bytes = b"", **options: int
    ) -> ClientSocket:
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
        self._context.destroy(linger=0)


@contextmanager
def open_clients() -> Iterator[Clients]:
    clients = Clients()
    try:
        yield clients
    finally:
        clients.close()
