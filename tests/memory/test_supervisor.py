"""The supervisor of `trioreq-server --processes`, with processes that do what the test says.

Deterministic: an autojump clock. The sockets between the supervisor and its processes are real, but
what is sent can be read at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio
from support.signals import signals_without_effect
from trio.testing import MockClock, wait_all_tasks_blocked

from trioreq._runner import control
from trioreq._runner.process import HEARTBEAT
from trioreq._runner.settings import RunnerOptions
from trioreq._runner.signals import Signals
from trioreq._runner.supervisor import StartFailed, Supervisor
from trioreq._runner.systemd import Notifier
from trioreq._statistics import Statistics, WorkerStatistics
from trioreq._transport.shared_counts import NONE

LONG = 1e6  # seconds
NOTHING = {field.name: 0 for field in fields(Statistics)}


class Process:
    """A process, as `trio.Process` is one.

    Args:
        control: Its end of the pair.
        cell: Where it counts connections.
    """

    def __init__(self, pid: int, control: socket.socket, cell: int) -> None:
        self.pid = pid
        self.cell = cell
        self.control = control
        self.returncode: int | None = None
        self._ended = trio.Event()

    def send(self, **counts: int) -> None:
        """Send statistics."""
        workers: Any = WorkerStatistics(0, 0, 0)
        statistics = Statistics(**{**NOTHING, "workers": workers, **counts})
        self.control.send(control.message(statistics))

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
        opening: How long starting one takes, in seconds.
    """

    def __init__(self) -> None:
        self.all: list[Process] = []
        self.at_start: Callable[[Process], object] = Process.send
        self.opening = 0.0

    async def open(self, *_: object, env: dict[str, str], **__: object) -> Process:
        """As `trio.lowlevel.open_process`, which a cancel does not interrupt."""
        with trio.CancelScope(shield=True):
            await trio.sleep(self.opening)
        given = json.loads(env[control.VARIABLE])
        own = socket.socket(fileno=os.dup(given["control"]))
        process = Process(1000 + len(self.all), own, given["cell"])
        try:
            self.at_start(process)
        except BaseException:
            process.control.close()
            raise
        self.all.append(process)
        return process

    @property
    def living(self) -> list[Process]:
        """Those that have not ended."""
        return [one for one in self.all if one.returncode is None]


@pytest.fixture(autouse=True)
def missed() -> Iterator[list[int]]:
    """Signals that the supervisor has not handled."""
    with signals_without_effect() as numbers:
        yield numbers


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    started = Processes()
    monkeypatch.setattr(trio.lowlevel, "open_process", started.open)
    yield started
    assert started.living == []


class Reports(Notifier):
    """What systemd would be sent, but its state.

    Attributes:
        sent: The first line of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def report(self, *lines: str) -> None:
        """Write it down."""
        self.sent.append(lines[0])


def supervisor_of(number: int, reports: Reports | None = None, **options: Any) -> Supervisor:
    """A supervisor of processes that listen nowhere."""
    runner = RunnerOptions(processes=number, **{"hang_timeout": LONG, **options})
    return Supervisor(runner, [], [], reports or Reports(), Signals())


def refuse(error: Exception) -> Callable[[Process], None]:
    """What a process does that cannot be started."""

    def start(_: Process) -> None:
        raise error

    return start


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


LACKS = [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")]


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


@pytest.mark.parametrize("lack", LACKS, ids=str)
async def test_a_lack_of_resources_is_a_start_that_has_failed(
    lack: Exception,
    processes: Processes,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    """The other process goes on, and nothing is left behind."""
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(2)
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        before = descriptors()
        processes.at_start = refuse(lack)
        processes.all[0].end(1)
        await trio.sleep(1000)
        assert processes.living == processes.all[1:]
        assert 30 < caplog.text.count(f"process 0 cannot be started: {lack}; it is retried") < 50
        await supervisor.roll()
        processes.at_start = Process.send
        await trio.sleep(31)
        assert len(processes.living) == 2
        assert descriptors() == before
        await supervisor.roll()
        assert len(processes.all) == 5
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lack", LACKS, ids=str)
async def test_a_lack_of_resources_ends_a_restart_but_not_the_processes(
    lack: Exception,
    processes: Processes,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(2)
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        processes.at_start = refuse(lack)
        await supervisor.roll()
        assert len(processes.living) == 2
        assert f"given up, since process 0 cannot be replaced: {lack}" in caplog.text
        nursery.cancel_scope.cancel()


async def test_a_lack_of_descriptors_for_the_pair_is_one_too(
    processes: Processes,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lack() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2).run)
        await trio.sleep(1)
        with monkeypatch.context() as patch:
            patch.setattr(control, "pair", lack)
            processes.all[0].end(1)
            await trio.sleep(10)
            assert processes.living == processes.all[1:]
        await trio.sleep(30)
        assert len(processes.living) == 2
        assert "process 0 cannot be started: [Errno 24] Too many open files" in caplog.text
        nursery.cancel_scope.cancel()


async def test_a_process_that_dies_as_it_begins_to_serve_has_not_started(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """Its first message is read when it has ended: no connections are meant for it."""
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(2)
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)

        def serve_and_die(process: Process) -> None:
            process.send()
            process.end(-signal.SIGSEGV)

        processes.at_start = serve_and_die
        processes.all[1].end(1)
        await trio.sleep(1)
        assert "process 1 cannot be started: SIGSEGV; it is retried" in caplog.text
        assert list(supervisor._connections._serving) == [processes.all[0].cell, NONE]
        nursery.cancel_scope.cancel()


async def test_a_process_that_serves_no_longer_but_does_not_end_is_killed(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """A thread of the handler's module keeps it alive."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2).run)
        await trio.sleep(1)
        first = processes.all[0]
        first.control.close()
        await trio.sleep(14)
        assert first.returncode is None
        await trio.sleep(2)
        assert first.returncode == -signal.SIGKILL
        assert "process 0 (pid 1000) has not ended in its grace: killed" in caplog.text
        assert len(processes.living) == 2
        nursery.cancel_scope.cancel()


async def test_a_process_is_replaced_while_others_have_not_started(
    processes: Processes, autojump_clock: MockClock
) -> None:
    def start(process: Process) -> None:
        if len(processes.all) != 1:
            process.send()

    processes.at_start = start
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2, start_timeout=60).run)
        await trio.sleep(1)
        first, second = processes.all
        first.end(1)
        await trio.sleep(10)
        assert processes.living == [second, processes.all[2]]
        nursery.cancel_scope.cancel()


async def test_a_successor_that_dies_is_replaced_while_its_predecessor_drains(
    processes: Processes, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(2, grace=600)
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(20)
        former, other, successor = processes.all
        assert former.orders() == [control.RETIRE]
        for _ in range(2):
            successor.end(-signal.SIGSEGV)
            await trio.sleep(1)
            *before, successor = processes.living
            assert before == [former, other]
        assert supervisor._connections._serving[0] == successor.cell
        former.end(0)
        await trio.sleep(1)
        assert other.orders() == [control.RETIRE]
        nursery.cancel_scope.cancel()


async def test_a_process_that_dies_while_its_successor_starts_is_replaced_once(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """By the successor, or by a further one if that has not started."""
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(1)
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        processes.at_start = lambda _: None
        for died in (False, True):
            nursery.start_soon(supervisor.roll)
            await trio.sleep(1)
            former, successor = processes.living
            former.end(1)
            await trio.sleep(1)
            processes.at_start = Process.send
            if died:
                successor.end(1)
            else:
                successor.send()
            await trio.sleep(1)
            assert processes.living == processes.all[-1:]
            processes.at_start = lambda _: None
        assert len(processes.all) == 4
        assert caplog.text.count("died: exit code 1; it is replaced") == 1
        nursery.cancel_scope.cancel()


async def test_a_process_that_does_not_end_is_reported_once(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """It has a successor, and serves no longer; a thread keeps it alive."""
    caplog.set_level("DEBUG")
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(1)
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        (former,) = processes.all
        former.control.close()
        nursery.start_soon(supervisor.roll)
        await trio.sleep(20)
        assert former.returncode == -signal.SIGKILL
        assert caplog.text.count("process 0 (pid 1000) has not ended in its grace: killed") == 1
        assert "cannot be sent drain" not in caplog.text
        nursery.cancel_scope.cancel()


async def test_sighup_while_the_processes_start_replaces_them_when_they_have_started(
    processes: Processes, autojump_clock: MockClock
) -> None:
    """READY=1 is sent to systemd when they serve."""
    processes.at_start = lambda _: None
    reports = Reports()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2, reports).run)
        await trio.sleep(1)
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(1)
        assert reports.sent == []
        (first,) = processes.all
        processes.at_start = Process.send
        first.send()
        await trio.sleep(1)
        assert reports.sent == ["READY=1", "RELOADING=1"]
        for process in processes.all[:2]:
            await trio.sleep(1)
            assert control.RETIRE in process.orders()
            process.end(0)
        await trio.sleep(1)
        assert reports.sent == ["READY=1", "RELOADING=1", "READY=1"]
        assert processes.living == processes.all[2:]
        nursery.cancel_scope.cancel()


async def test_signals_during_a_restart_cause_one_more_and_each_is_reported_to_systemd(
    processes: Processes, autojump_clock: MockClock
) -> None:
    reports = Reports()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2, reports, grace=1000).run)
        await trio.sleep(1)
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
            await trio.sleep(1)
        for rolls in (1, 2):
            for retired in processes.living[:2]:
                assert reports.sent == ["READY=1", *["RELOADING=1", "READY=1"] * rolls][:-1]
                assert retired.orders() == [control.RETIRE]
                retired.end(0)
                await trio.sleep(1)
        assert reports.sent == ["READY=1", *["RELOADING=1", "READY=1"] * 2]
        assert processes.living == processes.all[4:]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # for inotify's watches
        RuntimeError("error in underlying watcher"),
        ExceptionGroup("of its nursery", [FileNotFoundError(errno.ENOENT, "No such file")]),
    ],
)
async def test_a_source_that_cannot_be_watched_does_not_end_the_server(
    error: Exception,
    processes: Processes,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGHUP replaces the processes as before."""

    async def fail(*_: object, **__: object) -> AsyncIterator[set[tuple[int, str]]]:
        yield {(1, "service.py")}
        await trio.sleep(100)
        raise error

    monkeypatch.setattr("watchfiles.awatch", fail)
    cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(1, reload=True).run)
        await trio.sleep(200)
        assert f"the source is not watched any more: {cause}" in caplog.text
        assert len(processes.all) == 2
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(100)
        assert processes.living == processes.all[2:]
        nursery.cancel_scope.cancel()


async def test_a_process_that_is_being_opened_at_sigterm_is_killed(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """While the others drain, which may take long."""
    reports = Reports()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(2, reports, grace=1000).run)
        await trio.sleep(1)
        processes.opening = 10
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(1)
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep(1)
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(100)
        assert len(processes.all) == 3
        assert processes.living == processes.all[:2]
        assert reports.sent == ["READY=1", "RELOADING=1", "STOPPING=1"]
        for process in processes.living:
            assert process.orders() == [control.DRAIN]
            process.end(0)
        await trio.sleep(1)
        assert nursery.child_tasks == set()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_sigterm_while_the_first_process_starts_ends_it_and_starts_no_other(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    processes.at_start = lambda _: None
    supervisor = supervisor_of(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        signal.raise_signal(signal.SIGTERM)
    assert [process.returncode for process in processes.all] == [-signal.SIGKILL]
    assert supervisor._exit_code == 0
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_process_that_serves_is_drained_though_its_first_message_was_not_read(
    processes: Processes, autojump_clock: MockClock
) -> None:
    processes.at_start = lambda _: None
    supervisor = supervisor_of(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        (process,) = processes.all
        (child,) = supervisor._children

        async def drain() -> None:
            await wait_all_tasks_blocked()
            assert process.orders() == [control.DRAIN]
            process.end(0)

        nursery.start_soon(drain)
        process.send()
        await supervisor._end(child)  # in this step: no task has read the message
        assert process.returncode == 0
        signal.raise_signal(signal.SIGTERM)


async def test_no_signal_has_its_default_effect_when_the_supervisor_has_ended(
    processes: Processes,
    missed: list[int],
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files are removed after that."""
    number = tmp_path / "pid"
    close = os.close

    def raise_signals_and_close(descriptor: int) -> None:
        for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(each)
        close(descriptor)

    supervisor = supervisor_of(2, pid_file=number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        assert number.read_text() == f"{os.getpid()}\n"
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep(1)
        monkeypatch.setattr(os, "close", raise_signals_and_close)  # of the memory
        for process in processes.all:
            process.end(0)
    monkeypatch.undo()
    assert missed == []
    assert not number.exists()
    assert supervisor._exit_code == 0


async def test_no_file_is_written_if_no_process_can_be_started(
    processes: Processes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It may be that of another server."""
    number = tmp_path / "pid"
    number.write_text("1\n")
    processes.at_start = lambda process: process.end(2)
    with pytest.raises(StartFailed):
        await supervisor_of(2, pid_file=number).run()
    assert number.read_text() == "1\n"


@pytest.mark.parametrize("hang_timeout", [1.0, 3.0, 10.0])
async def test_a_process_is_not_killed_because_the_supervisor_was_stopped_with_it(
    hang_timeout: float, processes: Processes, autojump_clock: MockClock
) -> None:
    """As by Ctrl-Z in a terminal, or a container that is paused."""

    async def live() -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            processes.all[0].send()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor_of(1, hang_timeout=hang_timeout).run)
        await trio.sleep(0.1)
        nursery.start_soon(live)
        await trio.sleep(100.3)
        for _ in range(10):
            autojump_clock.jump(100)
            await trio.sleep(2.3)
        assert processes.living == processes.all[:1]
        assert len(processes.all) == 1
        nursery.cancel_scope.cancel()


async def test_a_process_without_a_sign_of_life_gets_no_connections_and_is_killed(
    processes: Processes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        supervisor = supervisor_of(1, hang_timeout=10)
        serving = supervisor._connections._serving
        nursery.start_soon(supervisor.run)
        await trio.sleep(3.9)
        first = processes.all[0]
        assert serving[0] == first.cell
        await trio.sleep(0.2)
        assert serving[0] == NONE
        first.send()
        await trio.sleep(0.1)
        assert serving[0] == first.cell
        await trio.sleep(9.8)
        assert processes.living == [first]
        await trio.sleep(0.2)
        assert processes.living == processes.all[1:]
        assert "hangs, without a sign of life for 10 s: killed" in caplog.text
        nursery.cancel_scope.cancel()
