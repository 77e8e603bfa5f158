"""The supervisor of `trioreq-server --processes`, with processes that do what the test says.

Deterministic: an autojump clock. The sockets between the supervisor and its processes are real, but
what is sent can be read at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trioreq._runner import control
from trioreq._runner.settings import RunnerOptions
from trioreq._runner.supervisor import Supervisor
from trioreq._runner.systemd import Notifier
from trioreq._statistics import Statistics, WorkerStatistics

LONG = 1e6  # seconds
NOTHING = {field.name: 0 for field in fields(Statistics)}


class Process:
    """A process, as `trio.Process` is one.

    Args:
        control: Its end of the pair.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.returncode: int | None = None
        self._ended = trio.Event()

    def send(self, **counts: int) -> None:
        """Send statistics."""
        workers: Any = WorkerStatistics(0, 0, 0)
        statistics = Statistics(**{**NOTHING, "workers": workers, **counts})
        self.control.send(control.message(control.READY, statistics))

    def orders(self) -> list[bytes]:
        """What it was ordered."""
        found = []
        while True:
            try:
                found.append(self.control.recv(control.LARGEST))
            except BlockingIOError:
                return found

    def end(self, code: int) -> None:
        """End."""
        if self.returncode is None:
            self.returncode = code
            self.control.close()
            self._ended.set()

    def kill(self) -> None:
        """As `trio.Process.kill`."""
        self.end(-signal.SIGKILL)

    async def wait(self) -> int:
        """As `trio.Process.wait`."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


class Processes:
    """All that were started.

    Attributes:
        all: They, in the order of their starts.
        at_start: What each does when it starts; it may raise.
    """

    def __init__(self) -> None:
        self.all: list[Process] = []
        self.at_start: Callable[[Process], object] = Process.send

    async def open(self, *_: object, env: dict[str, str], **__: object) -> Process:
        """As `trio.lowlevel.open_process`."""
        await trio.lowlevel.checkpoint()
        number = json.loads(env[control.VARIABLE])["control"]
        process = Process(1000 + len(self.all), socket.socket(fileno=os.dup(number)))
        try:
            self.at_start(process)
        except OSError:
            process.control.close()
            raise
        self.all.append(process)
        return process

    @property
    def living(self) -> list[Process]:
        """Those that have not ended."""
        return [one for one in self.all if one.returncode is None]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    started = Processes()
    monkeypatch.setattr(trio.lowlevel, "open_process", started.open)
    yield started
    assert started.living == []


def supervisor_of(number: int, **options: Any) -> Supervisor:
    """A supervisor of processes that listen nowhere."""
    runner = RunnerOptions(processes=number, **{"hang_timeout": LONG, **options})
    return Supervisor(runner, [], [], Notifier())


@pytest.mark.slow
async def test_a_process_is_started_again_however_often_that_has_failed(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """For days, at one place; the process of the other serves."""

    def fail(process: Process) -> None:
        if processes.all:
            process.end(3)
        else:
            process.send()

    processes.at_start = fail
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2).run)
        await trio.sleep(40_000)
        assert len(processes.all) > 1100
        assert processes.living == processes.all[:1]
        assert "process 1 cannot be started: exit code 3; it is retried" in caplog.text
        processes.at_start = Process.send
        await trio.sleep(30)
        assert len(processes.living) == 2
        nursery.cancel_scope.cancel()
