"""Groups of clients that die, as a test sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

TESTS = Path(__file__).parents[1]
Kinds = Sequence[tuple[str, str]]
"""Endpoints, and what is asked there."""


class Flock:
    """A process that runs `support/flock.py`.

    Attributes:
        size: How many clients a group has.
        died: How many have asked and died.
    """

    def __init__(self, process: trio.Process, size: int) -> None:
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        self._stdin, self._stdout = process.stdin, process.stdout
        self.size = size
        self.died = 0

    async def die(self, way: str, kinds: Kinds) -> None:
        """Let a group ask and die, ``killed`` or ``reset``."""
        order = json.dumps([way, self.died, list(kinds)])
        await self._stdin.send_all(order.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            more = await self._stdout.receive_some()
            assert more, "the flock has died on its own"
            answer += more
        assert int(answer) == self.size, "not all have asked; their errors are above"
        self.died += self.size


@asynccontextmanager
async def open_flock(processes: int, connections: int) -> AsyncIterator[Flock]:
    """Groups of so many processes, each with so many connections."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "support.flock", str(processes), str(connections)],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Flock(process, processes * connections)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()
