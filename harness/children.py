"""Child processes, for code in trio, with pipes for their input and output."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from .processes import ROOT, ChildFailed


@asynccontextmanager
async def open_process(
    command: Sequence[str], stderr: IO[str] | None = None, cwd: Path = ROOT
) -> AsyncIterator[trio.Process]:
    """Run a command; kill it at the end if it still runs.

    Args:
        command: The words of the command.
        stderr: Where its standard error goes; that of this process if None.
        cwd: The directory that it runs in.
    """
    process = await trio.lowlevel.open_process(
        list(command), cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


class Child:
    """A process that reads and writes lines.

    Attributes:
        process: The process.
        pid: Its number.
    """

    def __init__(self, process: trio.Process) -> None:
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        self.process = process
        self.pid = process.pid
        self._stdin, self._stdout = process.stdin, process.stdout
        self._buffer = b""

    async def ask(self, line: str = "") -> str:
        """Send a line, and wait for the answer, also a line.

        Raises:
            ChildFailed: The process has ended instead.
        """
        await self._stdin.send_all(line.encode() + b"\n")
        return await self.read_line()

    async def read_line(self) -> str:
        """Wait for a line.

        Raises:
            ChildFailed: The process has ended instead.
        """
        while b"\n" not in self._buffer:
            more = await self._stdout.receive_some()
            if not more:
                raise ChildFailed(f"{self.process.args!r} has ended")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP: it neither reads nor answers heartbeats, and its connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


@asynccontextmanager
async def open_child(command: Sequence[str]) -> AsyncIterator[Child]:
    """Run a command that reads and writes lines; kill it at the end if it still runs."""
    async with open_process(command) as process:
        yield Child(process)
