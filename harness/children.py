"""Child processes that obey lines, and clients whose waits are measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from .clients import ClientSocket

TESTS = Path(__file__).parents[1]


class Child:
    """A program which answers each line with one."""

    def __init__(self, process: trio.Process) -> None:
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        self._stdin, self._stdout = process.stdin, process.stdout
        self.pid = process.pid

    async def tell(self, order: str) -> str:
        """Give an order, and wait for the answer, a line."""
        await self._stdin.send_all(order.encode() + b"\n")
        return await self.wait()

    async def wait(self) -> str:
        """Wait for a line."""
        line = b""
        while not line.endswith(b"\n"):
            more = await self._stdout.receive_some()
            assert more, "the program has died; its errors are above"
            line += more
        return line.decode()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)


def open_child(program: str, *arguments: object) -> AbstractAsyncContextManager[Child]:
    """Run a program of `tests/support`, and kill it at the end."""
    return open_program(f"support.{program}", *map(str, arguments), folder=TESTS)


@asynccontextmanager
async def open_program(module: str, *arguments: str, folder: Path) -> AsyncIterator[Child]:
    """Run a module that is found from a folder, and kill it at the end."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()


class Waits:
    """How long a client waited for its replies, in seconds, and when each wait ended."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.ends: list[float] = []

    async def ask(self, client: ClientSocket, pause: float = 0.0) -> None:
        """Ask on and on, until cancelled."""
        while True:
            await self.ask_once(client)
            await trio.sleep(pause)

    async def ask_once(self, client: ClientSocket) -> None:
        """Ask, and take the time."""
        start = time.monotonic()
        try:
            await client.request(b"echo")
        finally:  # a wait that is cancelled was as long at least
            end = time.monotonic()
            self.waits.append(end - start)
            self.ends.append(end)

    def percentile(self, percent: float) -> float:
        """The wait that so many of a hundred do not exceed."""
        return sorted(self.waits)[min(len(self.waits) - 1, int(len(self.waits) * percent / 100))]

    def between(self, start: float, stop: float) -> Waits:
        """Those that ended after the one time and before the other."""
        part = Waits()
        for wait, end in zip(self.waits, self.ends, strict=True):
            if start < end <= stop:
                part.waits.append(wait)
                part.ends.append(end)
        return part
