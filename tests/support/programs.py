"""Programs in other languages, each with one zmq socket, which do what they are told."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
import trio

NPM_PACKAGE = "zeromq@6.8.0"


def cannot_be_had(what: str, remedy: str) -> NoReturn:
    """Skip the test; in CI, fail it."""
    message = f"{what}: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class Program:
    """A process that obeys `tests/interop/programs`' commands, one line each."""

    def __init__(self, process: trio.Process) -> None:
        self.pid = process.pid
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._buffer = b""

    async def version(self) -> list[str]:
        """What it runs on, each with its version."""
        return await self._tell("version")

    async def connect(self, kind: str, endpoint: str, *options: str) -> None:
        await self._tell("connect", kind, endpoint, *options)

    async def bind(self, kind: str, endpoint: str) -> str:
        """Returns where clients find it."""
        (bound,) = await self._tell("bind", kind, endpoint)
        return bound

    async def send(self, *frames: bytes) -> None:
        await self._tell("send", *(frame.hex() or "-" for frame in frames))

    async def receive(self) -> list[bytes]:
        return [bytes.fromhex(word.strip("-")) for word in await self._tell("receive")]

    async def request(self, *frames: bytes) -> list[bytes]:
        await self.send(*frames)
        return await self.receive()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP: it neither reads nor answers heartbeats, and its connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    async def _tell(self, *words: str) -> list[str]:
        await self._stdin.send_all(" ".join(words).encode() + b"\n")
        while b"\n" not in self._buffer:
            more = await self._stdout.receive_some()
            assert more, "the program has died; its errors are above"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode().split("|") if line else []


@asynccontextmanager
async def open_program(command: Sequence[str]) -> AsyncIterator[Program]:
    """A program, killed at the end if it still lives."""
    process = await trio.lowlevel.open_process(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()
