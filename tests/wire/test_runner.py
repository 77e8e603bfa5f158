"""The processes of `trioreq-server`, run in this one: the test has the other end, and the signals.

Real sockets; everything waits for events, under a limit.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.serving import LIMIT

import trioreq
from trioreq._options import Options
from trioreq._runner import control
from trioreq._runner.app import App
from trioreq._runner.control import Assignment
from trioreq._runner.process import serve_supervised
from trioreq._runner.settings import RunnerOptions
from trioreq._server.handlers import Handler
from trioreq._transport.shared_counts import open_memory

DIED = "the supervisor has died: this process drains"


async def handler(_: trioreq.Request) -> bytes:
    return b"done"


class Supervised:
    """A process with a supervisor, which is the test.

    Args:
        app: What it serves.

    Attributes:
        control: The supervisor's end of the pair.
    """

    def __init__(self, app: App) -> None:
        self.control, its = control.pair()
        self._app = app
        self._memory = open_memory(1, 3)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._assignment = Assignment(
                place=0,
                places=1,
                cell=0,
                control=its.detach(),
                memory=self._memory,
                listeners=[listener.detach()],
                steered=[],
            )

    async def run(self) -> int:
        """Run it to its end; returns its exit code."""
        try:
            with trio.fail_after(LIMIT):
                return await serve_supervised(self._app, RunnerOptions(), self._assignment)
        finally:
            os.close(self._memory)
            self.control.close()


@pytest.mark.slow
async def test_a_process_whose_supervisor_was_killed_drains_whatever_was_not_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The system then reports a reset, instead of the end of the stream."""
    process = Supervised(App(handler, Options()))

    async def die() -> None:
        for _ in range(2):  # further messages come when it waits for orders
            await trio.lowlevel.wait_readable(process.control)
            process.control.recv(control.LARGEST)
        await trio.lowlevel.wait_readable(process.control)
        process.control.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(die)
        assert await process.run() == 0
    assert DIED in caplog.text


async def test_a_process_whose_supervisor_was_killed_while_it_started_drains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = Supervised(App(handler, Options()))
    process.control.close()
    assert await process.run() == 0
    assert DIED in caplog.text


async def test_sigterm_before_a_process_serves_stops_it() -> None:
    class Slow(App):
        @asynccontextmanager
        async def opened(self, runner: RunnerOptions) -> AsyncIterator[Handler]:
            signal.raise_signal(signal.SIGTERM)
            await trio.sleep_forever()
            yield handler

    process = Supervised(Slow(handler, Options()))
    assert await process.run() == 128 + signal.SIGTERM
