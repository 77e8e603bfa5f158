"""The processes of `trioreq-server`, run in this one: the test has the other end, and the signals.

Real sockets; everything waits for events, under a limit.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from support.serving import LIMIT
from support.signals import signals_without_effect

import trioreq
from trioreq._options import Options
from trioreq._runner import control, main
from trioreq._runner.app import App
from trioreq._runner.control import Assignment
from trioreq._runner.pid_file import check_pid_file
from trioreq._runner.process import Serving, serve_alone, serve_supervised
from trioreq._runner.settings import SETTINGS, RunnerOptions, WrongSetting
from trioreq._runner.signals import OTHERS, Signals
from trioreq._runner.supervisor import Supervisor
from trioreq._runner.systemd import Notifier
from trioreq._server.handlers import Handler
from trioreq._transport.listeners import Listener, open_listeners
from trioreq._transport.server_sockets import BoundSockets
from trioreq._transport.shared_counts import open_memory

DIED = "the supervisor has died: this process drains"


@pytest.fixture(autouse=True)
def missed() -> Iterator[list[int]]:
    """Signals that the server has not handled."""
    with signals_without_effect() as numbers:
        yield numbers


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
                return await serve_supervised(
                    self._app, RunnerOptions(), self._assignment, Signals()
                )
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


class Raises(Notifier):
    """Raises signals when systemd is sent a state.

    Args:
        signals: By the states; each is raised once.

    Attributes:
        sent: The states.
    """

    def __init__(self, signals: Mapping[str, int]) -> None:
        super().__init__()
        self.sent: list[str] = []
        self._signals = dict(signals)

    def report(self, *lines: str) -> None:
        self.sent.append(lines[0])
        if lines[0] in self._signals:
            signal.raise_signal(self._signals.pop(lines[0]))


async def serve(notifier: Raises, address: str, **options: Any) -> int:
    with trio.fail_after(LIMIT):
        app = App(handler, Options())
        return await serve_alone(app, RunnerOptions(**options), [address], notifier, Signals())


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ({"READY=1": signal.SIGTERM}, 0),
        ({"READY=1": signal.SIGTERM, "STOPPING=1": signal.SIGTERM}, 128 + signal.SIGTERM),
    ],
)
async def test_no_signal_has_its_default_effect_when_the_server_closes(
    signals: Mapping[str, int],
    code: int,
    missed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, path = tmp_path / "pid", tmp_path / "socket"
    aclose = BoundSockets.aclose

    async def raise_signals_and_close(sockets: BoundSockets) -> None:
        for each in OTHERS:
            signal.raise_signal(each)
        await aclose(sockets)
        assert number.exists()

    monkeypatch.setattr(BoundSockets, "aclose", raise_signals_and_close)
    notifier = Raises(signals)
    assert await serve(notifier, f"ipc://{path}", pid_file=number) == code
    for each in OTHERS:
        signal.raise_signal(each)
    assert missed == []
    assert not number.exists()
    assert not path.exists()
    assert notifier.sent == ["READY=1", "STOPPING=1"]


async def test_sighup_while_the_server_drains_does_nothing(tmp_path: Path) -> None:
    notifier = Raises({"READY=1": signal.SIGTERM, "STOPPING=1": signal.SIGHUP})
    assert await serve(notifier, f"ipc://{tmp_path}/socket") == 0
    assert notifier.sent == ["READY=1", "STOPPING=1"]


async def test_sighup_while_the_keys_are_read_again_reads_them_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that; and each time is reported to systemd."""

    async def slow(_serving: Serving) -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Serving, "reload_keys", slow)
    notifier = Raises({"READY=1": signal.SIGHUP, "RELOADING=1": signal.SIGHUP})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, notifier, f"ipc://{tmp_path}/socket")
        while len(notifier.sent) < 5:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert notifier.sent == ["READY=1", *["RELOADING=1", "READY=1"] * 2]


async def test_a_signal_while_the_server_starts_has_its_effect_afterwards(tmp_path: Path) -> None:
    """Keys are read before the handler's module is imported, which may take long."""
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)
    notifier = Raises({})
    app = App(handler, Options())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            serve_alone, app, RunnerOptions(), [f"ipc://{tmp_path}/socket"], notifier, signals
        )
        while notifier.sent != ["READY=1", "RELOADING=1", "READY=1"]:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def test_sigterm_as_the_supervisor_has_opened_its_sockets_leaves_no_file(
    missed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"

    @contextmanager
    def opened(*arguments: Any) -> Iterator[list[Listener]]:
        with open_listeners(*arguments) as listeners:
            assert path.exists()
            signal.raise_signal(signal.SIGTERM)
            yield listeners

    class Receives(Supervisor):
        async def run(self) -> int:
            received: list[int] = []
            with self._signals.received(received.append):
                await trio.testing.wait_all_tasks_blocked()
            os.close(self._memory)
            return received[0]

    monkeypatch.setattr(main, "set_up", lambda *_: None)
    monkeypatch.setattr(main, "open_listeners", opened)
    monkeypatch.setattr(main, "Supervisor", Receives)
    values = {name: setting.default for name, setting in SETTINGS.items()}
    values.update(bind=(f"ipc://{path}",), processes=2)
    assert main.run("service:handler", values, [], check=False) == signal.SIGTERM
    assert missed == []
    assert not path.exists()


async def test_signals_that_come_faster_than_they_are_handled_are_handled_once() -> None:
    """Those that end the server are counted."""
    handled: list[signal.Signals] = []
    with Signals().received(handled.append):
        for number in (*OTHERS * 100, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(handled) == sorted([*OTHERS, signal.SIGTERM, signal.SIGTERM])


async def test_a_server_that_cannot_bind_leaves_the_file_of_the_other_alone(
    tmp_path: Path,
) -> None:
    number, address = tmp_path / "pid", f"ipc://{tmp_path}/socket"
    async with trio.open_nursery() as nursery:
        serving = Raises({})
        nursery.start_soon(partial(serve, serving, address, pid_file=number))
        while not serving.sent:
            await trio.lowlevel.checkpoint()
        number.write_text("1\n")  # the other's
        with pytest.raises(trioreq.EndpointError):
            await serve(Raises({}), address, pid_file=number)
        assert number.read_text() == "1\n"
        nursery.cancel_scope.cancel()
    assert number.read_text() == "1\n"


def test_a_file_that_can_be_written_is_not_touched(tmp_path: Path) -> None:
    """Another server's number may be in it."""
    number = tmp_path / "pid"
    check_pid_file(number)
    assert list(tmp_path.iterdir()) == []
    number.write_text("1\n")
    check_pid_file(number)
    assert number.read_text() == "1\n"


def test_a_directory_is_not_a_file_for_the_number(tmp_path: Path) -> None:
    with pytest.raises(WrongSetting, match="Is a directory"):
        check_pid_file(tmp_path)


async def test_a_file_that_cannot_be_written_ends_the_server(tmp_path: Path) -> None:
    notifier = Raises({})
    with pytest.raises(WrongSetting, match="cannot write '/nowhere/pid': No such file"):
        await serve(notifier, f"ipc://{tmp_path}/socket", pid_file=Path("/nowhere/pid"))
    assert notifier.sent == []
