"""`trioreq-server` in processes of its own, and the lines of JSON that it logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

LIMIT = 60  # seconds; a process takes half a second to start, and some tests start six
COMMAND = [sys.executable, "-P", "-m", "trioreq_cli"]  # as the script, which pip installs
HANDLER = """
import os
import time
import trio
import trioreq

async def handler(request):
    order, *arguments = request.body.split()
    match order:
        case b"sleep":
            await trio.sleep(float(arguments[0]))
        case b"block":
            time.sleep(float(arguments[0]))
        case b"who":
            return request.client.user_id.encode()
    return b"%d" % os.getpid()

def make():
    return handler

async def admit(applicant):
    return "admitted"
"""

Line = dict[str, Any]


class Served:
    """A running `trioreq-server`.

    Attributes:
        process: The process, or the supervisor of many.
        lines: What it has logged.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[Line] = []
        self._came = trio.Event()
        self._read = 0

    async def read(self) -> None:
        """Read the log, to its end."""
        assert isinstance(self.process.stderr, trio.lowlevel.FdStream)
        buffer = b""
        async for part in self.process.stderr:
            *lines, buffer = (buffer + part).split(b"\n")
            for line in lines:
                try:
                    self.lines.append(json.loads(line))
                except ValueError:  # not the log's
                    self.lines.append({"message": line.decode(), "pid": 0})
            self._came.set()
            self._came = trio.Event()

    async def line(self, text: str, which: Callable[[Line], bool] = lambda _: True) -> Line:
        """Wait for the next line that has a text, after the last that was waited for."""
        while True:
            while self._read < len(self.lines):
                line = self.lines[self._read]
                self._read += 1
                if text in line["message"] and which(line):
                    return line
            await self._came.wait()

    async def serving(self) -> list[str]:
        """Wait until a process serves; returns the endpoints."""
        line = await self.line("serving on ")
        return str(line["message"]).removeprefix("serving on ").split(", ")

    async def statistics(self, order: int) -> Line:
        """Ask for the statistics by a signal."""
        self.process.send_signal(order)
        counts: Line = (await self.line("statistics: "))["statistics"]
        return counts

    def errors(self) -> list[str]:
        """The lines of level ERROR."""
        return [line["message"] for line in self.lines if line.get("level") == "error"]


@asynccontextmanager
async def served(
    directory: Path,
    *arguments: str,
    command: Sequence[str] = COMMAND,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    handler: str = "service:handler",
) -> AsyncIterator[Served]:
    """Serve `HANDLER`, from a directory; kill what still runs at the end.

    `handler` is empty for a server that forwards.
    """
    source = directory / "service.py"
    if not source.exists():
        source.write_text(HANDLER)
    with trio.fail_after(LIMIT):
        process = await trio.lowlevel.open_process(
            [*command, *filter(None, [handler]), "--app-dir", str(directory), *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        server = Served(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read)
            try:
                yield server
            finally:
                process.kill()  # its processes read the end of the stream, and drain
                with trio.CancelScope(shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()


async def ended(server: Served) -> int:
    """Wait for the end; returns the exit code."""
    return await server.process.wait()
