"""Servers in processes of their own, as a test sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

SERVER = Path(__file__).with_name("server.py")


class ServerProcess:
    """A process that runs `support/server.py`.

    Attributes:
        endpoints: Where it serves.
        told: What its handlers have told: word and name -> time.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        self._stdin = process.stdin
        self._stdout = process.stdout
        self.endpoints: list[str] = []
        self.told: dict[tuple[str, str], float] = {}
        self._states: list[dict[str, Any]] = []
        self._changed = trio.Event()

    @property
    def endpoint(self) -> str:
        """Where it serves."""
        return self.endpoints[0]

    async def changed(self) -> None:
        """Wait until it has told something more."""
        await self._changed.wait()

    async def wait(self, word: str, name: str) -> float:
        """Wait until it has told this; returns the time when it happened."""
        while (word, name) not in self.told:
            await self._changed.wait()
        return self.told[word, name]

    async def state(self) -> dict[str, Any]:
        """How it is: memory, descriptors, tasks, threads, statistics, and more."""
        self._states.clear()
        await self._stdin.send_all(b"?")
        while not self._states:
            await self._changed.wait()
        return self._states.pop()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask how it is until something is so; returns how it is then."""
        while True:
            state = await self.state()
            if condition(state):
                return state
            await trio.sleep(0.01)  # it has better things to do than to answer

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.process.pid, signal.SIGKILL)

    async def listen(self, task_status: trio.TaskStatus[None]) -> None:
        """Take in what it tells."""
        buffer = b""
        while more := await self._stdout.receive_some():
            *lines, buffer = (buffer + more).split(b"\n")
            for line in lines:
                match json.loads(line):
                    case ["serving", *endpoints]:
                        self.endpoints = endpoints
                        task_status.started()
                    case ["is", state]:
                        self._states.append(state)
                    case [word, name, time]:
                        self.told[word, name] = time
            changed, self._changed = self._changed, trio.Event()
            changed.set()


@asynccontextmanager
async def open_server(
    addr: str = "tcp://127.0.0.1:0",
    *,
    kind: str = "async",
    inside: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[ServerProcess]:
    """A server process, killed at the end.

    Args:
        addr: Where it serves.
        kind: ``async``, ``plain``, or ``both`` for one server of each.
        inside: What the command is put behind, such as ``ip netns exec NAME``.
        options: Those of `trioreq.serve`.
    """
    command = [*inside, sys.executable, str(SERVER), addr, json.dumps(options), kind]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        async with trio.open_nursery() as nursery:
            server = ServerProcess(process)
            await nursery.start(server.listen)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()
