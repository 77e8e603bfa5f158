"""Servers in processes of their own, for code in trio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

import trio

from .children import Child, open_process
from .processes import ChildFailed, python_module

ADDRESS = "tcp://127.0.0.1:0"
PAUSE = 0.01  # seconds between two questions: to answer one takes the server's time


class ServerProcess(Child):
    """A process that runs `harness.programs.server`.

    Attributes:
        endpoints: Where it serves.
        told: What its handlers have reported, and what it has logged: (word, name) -> time.
        log: All that it has logged, in order, with tracebacks.
    """

    def __init__(self, process: trio.Process) -> None:
        super().__init__(process)
        self.endpoints: list[str] = []
        self.told: dict[tuple[str, str], float] = {}
        self.log: list[str] = []
        self._states: list[dict[str, Any]] = []
        self._changed = trio.Event()
        self._ended = False

    @property
    def endpoint(self) -> str:
        """The first of `endpoints`."""
        return self.endpoints[0]

    async def changed(self) -> None:
        """Wait until it has reported something more.

        Raises:
            ChildFailed: The process has ended.
        """
        if self._ended:
            raise ChildFailed(f"{self.process.args!r} has ended")
        await self._changed.wait()

    async def wait(self, word: str, name: str) -> float:
        """Wait until it has reported this; returns the time when it happened.

        Raises:
            ChildFailed: The process has ended.
        """
        while (word, name) not in self.told:
            await self.changed()
        return self.told[word, name]

    async def state(self) -> dict[str, Any]:
        """Memory, descriptors, tasks, threads, statistics, and more: see the program.

        Raises:
            ChildFailed: The process has ended.
        """
        self._states.clear()
        await self._stdin.send_all(b"?")
        while not self._states:
            await self.changed()
        return self._states.pop()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the state until it meets a condition; returns that state.

        Raises:
            ChildFailed: The process has ended.
        """
        while True:
            state = await self.state()
            if condition(state):
                return state
            await trio.sleep(PAUSE)

    async def listen(self, task_status: trio.TaskStatus[None]) -> None:
        """Take in what it reports, until it ends; it has started when it serves."""
        while not self._ended:
            try:
                report = json.loads(await self.read_line())
            except ChildFailed:
                self._ended = True  # `changed` raises it again, for those that wait
            else:
                self._take_in(report)
                if report[0] == "serving":
                    task_status.started()
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    def _take_in(self, report: list[Any]) -> None:
        match report:
            case ["serving", *endpoints]:
                self.endpoints = endpoints
            case ["is", state]:
                self._states.append(state)
            case [word, name, time]:
                self.told[word, name] = time
                if word == "log":
                    self.log.append(name)


@asynccontextmanager
async def open_server(
    addr: str = ADDRESS,
    *,
    kind: str = "async",
    inside: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[ServerProcess]:
    """A server process, killed at the end.

    Args:
        addr: Where it serves.
        kind: Of handler: ``async``, ``plain``, ``both`` for one server of each, or ``echo`` for
            one that takes any body.
        inside: Words before the command, such as ``ip netns exec NAME``.
        options: Those of `trioreq.serve`.
    """
    program = python_module("harness.programs.server", addr, json.dumps(options), kind)
    async with _open([*inside, *program]) as server:
        yield server


@asynccontextmanager
async def open_router(stderr: IO[str]) -> AsyncIterator[ServerProcess]:
    """A process with a stock ROUTER that echoes, killed at the end; it has no state.

    Args:
        stderr: Where its standard error goes.
    """
    async with _open(python_module("harness.programs.router", ADDRESS), stderr) as server:
        yield server


@asynccontextmanager
async def _open(
    command: Sequence[str], stderr: IO[str] | None = None
) -> AsyncIterator[ServerProcess]:
    async with open_process(command, stderr) as process, trio.open_nursery() as nursery:
        server = ServerProcess(process)
        await nursery.start(server.listen)
        yield server
        nursery.cancel_scope.cancel()
