"""A process that serves: by itself, or as one of those that a supervisor has."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial

import trio

from .._errors import KeyFileError
from .._log import log
from .._nursery import open_own_nursery
from .._protocol.connection_limits import Total
from .._server.observer import Observer
from .._server.serve import run_server
from .._server.server import Server
from .._transport.shared_counts import SharedCounts
from . import control
from .app import App, load_keys
from .control import Assignment
from .logs import AccessLog
from .pid_file import pid_file
from .reloads import Reloads
from .settings import RunnerOptions
from .signals import Signals
from .systemd import Notifier

HEARTBEAT = 0.5  # seconds between two signs of life for the supervisor
RETIRING = 0.5  # seconds for the first requests of those that have just connected


class Serving:
    """A server in this process, and how it ends.

    Args:
        app: What is served.
        runner: Has the grace, and says whether requests are logged.
        nursery: Where its tasks run.

    Attributes:
        code: The exit code.
        started: Set when it serves.
        draining: Whether it has begun to end.
        server: The server, when it has started.
    """

    def __init__(self, app: App, runner: RunnerOptions, nursery: trio.Nursery) -> None:
        self._app = app
        self.runner = runner
        self.nursery = nursery
        self.code = 0
        self.started = trio.Event()
        self.draining = False
        self.server: Server

    async def start(self, addresses: Sequence[str | socket.socket], total: Total | None) -> None:
        """Serve, until it is drained or stopped; returns when it does."""
        serve = partial(self._serve, addresses, total)
        self.server = await self.nursery.start(serve, name="serve")
        self.started.set()

    async def _serve(
        self,
        addresses: Sequence[str | socket.socket],
        total: Total | None,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        observers: list[Observer] = [AccessLog()] if self.runner.access_log else []
        async with self._app.opened(self.runner) as handler:
            await run_server(
                handler,
                addresses,
                self._app.options,
                observers=observers,
                total=total,
                task_status=task_status,
            )

    def drain(self) -> None:
        """Let requests in flight end, and then end."""
        if not self.draining:
            self.draining = True
            self.nursery.start_soon(self._drain)

    def retire(self) -> None:
        """The same, when a successor serves: first go on for those that have just connected."""
        if not self.draining:
            self.server.refuse_connections()
            self.nursery.start_soon(self._retire)

    async def _retire(self) -> None:
        await trio.sleep(RETIRING)
        self.drain()

    async def _drain(self) -> None:
        await self.server.drain(self.runner.grace)
        self.nursery.cancel_scope.cancel(reason="the server is drained")

    def stop(self, code: int) -> None:
        """End now."""
        self.code = code
        self.nursery.cancel_scope.cancel(reason="the server is stopped")

    async def reload_keys(self) -> None:
        """Read the keys again; if they cannot be used, the former ones stay."""
        curve = self._app.options.curve
        if curve is None:
            return
        if curve.allow is not None:
            await curve.allow.reload()
        try:
            self.server.replace_keys(await trio.to_thread.run_sync(load_keys, self.runner))
        except (KeyFileError, RuntimeError) as error:
            log.error("the server's keys are unchanged: %s", error)  # noqa: TRY400
        else:
            log.info("the keys were read again")


async def serve_alone(
    app: App,
    runner: RunnerOptions,
    addresses: Sequence[str | socket.socket],
    notifier: Notifier,
    signals: Signals,
) -> int:
    """Serve in this process, which has no supervisor.

    Returns:
        The exit code.
    """

    def counts() -> control.Counts:
        return asdict(serving.server.statistics())

    def signalled(number: signal.Signals) -> None:
        match number:
            case signal.SIGHUP:
                reloads.request()
            case signal.SIGUSR1:
                nursery.start_soon(report)
            case _ if serving.draining or not serving.started.is_set():
                serving.stop(128 + number)
            case _:
                notifier.stopping()
                serving.drain()

    async def report() -> None:
        await serving.started.wait()
        log.info("statistics: %(statistics)s", {"statistics": counts()})

    with ExitStack() as files:
        async with open_own_nursery() as nursery:
            serving = Serving(app, runner, nursery)
            reloads = Reloads(serving.reload_keys, notifier)
            with signals.received(signalled):
                await serving.start(addresses, None)
                files.enter_context(pid_file(runner.pid_file))
                notifier.ready()
                nursery.start_soon(reloads.run)
                await notifier.run(lambda: control.summary(counts()))
    return serving.code


async def serve_supervised(
    app: App, runner: RunnerOptions, assignment: Assignment, signals: Signals
) -> int:
    """Serve in this process, which has a supervisor.

    It obeys the supervisor. The signals that a terminal or a service manager sends to all
    processes are the supervisor's; SIGTERM drains.

    Returns:
        The exit code.
    """
    sockets = ExitStack()
    own = trio.socket.from_stdlib_socket(socket.socket(fileno=assignment.control))
    sockets.enter_context(own)
    listeners = {
        number: sockets.enter_context(socket.socket(fileno=number))
        for number in assignment.listeners
    }
    steered = [listeners[number] for number in assignment.steered]
    total = SharedCounts(assignment.memory, assignment.places, assignment.cell, steered)

    async def obey() -> None:
        while True:
            try:
                order = await own.recv(control.LARGEST)
            except ConnectionResetError:  # reported once; the end of the stream follows
                continue
            match order:
                case control.RETIRE:
                    serving.retire()
                case control.DRAIN:
                    serving.drain()
                case control.STOP:
                    serving.stop(1)
                case _:
                    break
        log.error("the supervisor has died: this process drains")
        serving.drain()

    async def report() -> None:
        with suppress(OSError):  # `obey` reads that the supervisor has died
            await own.send(control.message(serving.server.statistics()))

    async def live() -> None:
        while True:
            total.steer()
            await report()
            await trio.sleep(HEARTBEAT)

    def signalled(number: signal.Signals) -> None:
        if number == signal.SIGTERM and serving.started.is_set():
            serving.drain()
        elif number == signal.SIGTERM:
            serving.stop(128 + number)

    with sockets:
        async with open_own_nursery() as nursery:
            serving = Serving(app, runner, nursery)
            with signals.received(signalled):
                await serving.start([*listeners.values()], total)
                nursery.start_soon(live)
                await obey()
                await trio.sleep_forever()
        if serving.started.is_set():
            with trio.move_on_after(HEARTBEAT):
                await report()
    return serving.code
