"""The supervisor of many processes: starts them, replaces those that die or hang, and adds up.

Each place has one process that serves, and one more while a process is replaced: the successor
serves first, and then its predecessor drains. Both accept connections of the same sockets, so none
is refused meanwhile.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from subprocess import DEVNULL

import trio

from .._backoff import backoff
from .._log import log
from .._nursery import open_own_nursery
from .._server.exit_codes import describe
from .._transport.listeners import Listener
from .._transport.shared_counts import NONE, SharedCounts, open_memory
from . import control
from .control import Assignment, Counts
from .pid_file import pid_file
from .reloads import Reloads
from .settings import RunnerOptions
from .signals import Signals
from .systemd import Notifier

COMMAND = (sys.executable, "-P", "-m", "trioreq_cli")  # not from the working directory
LATE = 4.0  # seconds without a sign of life after which a process gets no new connections
SOON, SELDOM = 0.1, 30.0  # seconds before a process is started again, at least and at most
STABLE = 10.0  # seconds after which a process counts as one that works
MARGIN = 5.0  # seconds that a process has to end, beside the grace


class StartFailed(Exception):
    """A process has ended before it served, or could not be started.

    Attributes:
        code: Its exit code; 0 if it could not be started.
    """

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class Child:
    """One process.

    Attributes:
        process: The process of the system.
        place: Which one it is, or replaces.
        cell: Where it counts its connections.
        control: The supervisor's end of the pair.
        counts: The statistics that it has sent last.
        serves: Whether it has begun to serve.
        ending: Whether its grace has begun.
        settled: Set when it serves, or has ended before.
        left: Set when it no longer serves at its place: it has a successor, or has ended.
        ended: Set when it has ended.
    """

    def __init__(
        self, process: trio.Process, place: int, cell: int, control: socket.socket
    ) -> None:
        self.process = process
        self.place = place
        self.cell = cell
        self.control = control
        self.counts: Counts = {}
        self.serves = False
        self.ending = False
        self.settled = trio.Event()
        self.left = trio.Event()
        self.ended = trio.Event()
        self.began = trio.current_time()

    def __str__(self) -> str:
        return f"process {self.place} (pid {self.process.pid})"

    def order(self, order: bytes) -> None:
        """Send it an order, unless it has ended, or reads nothing."""
        try:
            self.control.send(order)
        except OSError:
            log.debug("%s cannot be sent %s", self, order.decode())

    @property
    def code(self) -> int:
        """Its exit code, when it has ended."""
        return self.process.returncode or 0


class Supervisor:
    """Keeps processes.

    Args:
        runner: How many there are, and how they are run.
        arguments: Those of the command line, which each process gets.
        listeners: What they listen at.
        notifier: Reports to systemd.
        signals: Those of this process.
    """

    def __init__(
        self,
        runner: RunnerOptions,
        arguments: Sequence[str],
        listeners: Sequence[Listener],
        notifier: Notifier,
        signals: Signals,
    ) -> None:
        places = runner.processes
        self._runner = runner
        self._arguments = arguments
        self._listeners = listeners
        self._notifier = notifier
        self._signals = signals
        self._cells = set(range(2 * places + 1))
        self._memory = open_memory(places, len(self._cells))
        steered = [one.of(0) for one in listeners if one.shared_out]
        self._connections = SharedCounts(self._memory, places, 0, steered)
        self._children: set[Child] = set()  # all that have not ended
        self._serving: list[Child | None] = [None] * places
        self._changing = [trio.Lock() for _ in range(places)]
        self._reloads = Reloads(self.roll, notifier)
        self._hurry = trio.Event()
        self._before: Counts = {}  # of processes that have ended
        self._stopping = False
        self._exit_code = 0
        self._nursery: trio.Nursery

    def statistics(self) -> Counts:
        """The sums over all processes, also those that have ended."""
        total = self._before
        for child in self._children:
            total = control.added(total, child.counts)
        return total

    async def run(self) -> int:
        """Supervise, until SIGTERM or SIGINT.

        Returns:
            The exit code.

        Raises:
            StartFailed: The first process has not started.
            WrongSetting: The PID file cannot be written.
        """
        files = ExitStack()
        try:
            async with open_own_nursery() as self._nursery:
                with self._signals.received(self._signalled):
                    await self._start_all()
                    if not self._stopping:
                        files.enter_context(pid_file(self._runner.pid_file))
                        self._notifier.ready()
                        self._nursery.start_soon(self._reloads.run)
                        if self._runner.reload:
                            self._nursery.start_soon(self._follow_source)
                    await self._notifier.run(self._status)
        finally:
            for child in self._children:
                child.process.kill()
                child.control.close()
            os.close(self._memory)
            files.close()
        return self._exit_code

    async def _start_all(self) -> None:
        """Start the first process alone: if it cannot be started, neither can the others.

        Raises:
            StartFailed: It cannot.
        """
        await self._start(0)
        self._nursery.start_soon(self._keep, 0)
        async with trio.open_nursery() as nursery:
            for place in range(1, self._runner.processes):
                nursery.start_soon(self._start_other, place)

    async def _start_other(self, place: int) -> None:
        await self._try_to_start(place)
        self._nursery.start_soon(self._keep, place)

    # One process.

    async def _try_to_start(self, place: int) -> bool:
        """Start a process, and log why if that fails; returns whether it has not failed."""
        try:
            await self._start(place)
        except StartFailed as error:
            log.error("process %d cannot be started: %s; it is retried", place, error)  # noqa: TRY400
            return False
        return True

    async def _start(self, place: int) -> None:
        """Start a process at a place; returns when it serves there, or when all are to end.

        Raises:
            StartFailed: It has ended before, or cannot be started.
        """
        if self._stopping:
            return
        try:
            child = await self._open(place)
        except (OSError, RuntimeError) as error:  # no descriptor, memory, process or thread is left
            raise StartFailed(str(error)) from error
        self._nursery.start_soon(self._watch, child)
        if self._stopping:  # meanwhile: too late to be drained with the others
            child.process.kill()
        with trio.move_on_after(self._runner.start_timeout) as scope:
            await child.settled.wait()
        if scope.cancelled_caught:
            log.error("%s does not serve after %s s: killed", child, self._runner.start_timeout)
            child.process.kill()
            await child.ended.wait()
        if self._stopping:
            return
        if not child.serves or child.ended.is_set():
            raise StartFailed(describe(child.code), child.code)
        former, self._serving[place] = self._serving[place], child
        if former is not None:
            former.left.set()
        self._connections.choose(place, child.cell)
        log.info("%s serves", child)

    async def _open(self, place: int) -> Child:
        own, its = control.pair()
        cell = self._cells.pop()
        listeners = [one.of(place) for one in self._listeners]
        assignment = Assignment(
            place=place,
            places=self._runner.processes,
            cell=cell,
            control=its.fileno(),
            memory=self._memory,
            listeners=[one.fileno() for one in listeners],
            steered=[
                one.fileno()
                for one, listener in zip(listeners, self._listeners, strict=True)
                if listener.shared_out
            ],
        )
        try:
            with its:
                process = await trio.lowlevel.open_process(
                    [*COMMAND, *self._arguments],
                    stdin=DEVNULL,
                    env=assignment.environment(),
                    pass_fds=assignment.descriptors,
                )
        except BaseException:
            own.close()
            self._cells.add(cell)
            raise
        child = Child(process, place, cell, own)
        self._children.add(child)
        return child

    async def _watch(self, child: Child) -> None:
        """Handle the messages of a process, until it has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, child)
            await child.process.wait()
            nursery.cancel_scope.cancel()
        self._read(child)
        child.control.close()
        self._children.remove(child)
        self._before = control.added(self._before, control.after_end(child.counts))
        if self._serving[child.place] is child:
            self._connections.choose(child.place, NONE)
        self._connections.clear(child.cell)
        self._cells.add(child.cell)
        child.settled.set()
        child.left.set()
        child.ended.set()

    async def _listen(self, child: Child) -> None:
        patience = self._runner.hang_timeout
        silent = 0.0
        while True:
            # After both were stopped for a while, the current wait ends at once. So a process is
            # killed only after at least two waits without a message.
            wait = min(LATE, patience / 2, patience - silent) if child.serves else LATE
            with trio.move_on_after(wait) as scope:
                await trio.lowlevel.wait_readable(child.control)
            if not scope.cancelled_caught:
                if silent and self._serving[child.place] is child:
                    self._connections.choose(child.place, child.cell)
                silent = 0.0
                if not self._read(child):
                    break
            elif child.serves:
                silent += wait
                if silent >= LATE and self._serving[child.place] is child:
                    self._connections.choose(child.place, NONE)
                if silent >= patience:
                    log.error("%s hangs, without a sign of life for %s s: killed", child, patience)
                    child.process.kill()
                    return
        if child.serves:  # no longer; a thread may keep the process alive
            if self._serving[child.place] is child:
                self._connections.choose(child.place, NONE)
            await self._wait_for_end(child)

    def _read(self, child: Child) -> bool:
        """Read the messages of a process; returns whether there may be more."""
        while True:
            try:
                data = child.control.recv(control.LARGEST)
            except BlockingIOError:
                return True
            except ConnectionResetError:  # reported once; what it has sent follows
                continue
            if not data:
                return False
            child.counts = control.read_message(data)
            child.serves = True
            child.settled.set()

    async def _end(self, child: Child, order: bytes = control.DRAIN) -> None:
        """Let a process drain, or kill it if it does not serve yet."""
        if not child.ended.is_set():
            self._read(child)  # it may serve by now, and have said so
        if child.serves:
            child.order(order)
        else:
            child.process.kill()
        await self._wait_for_end(child)

    async def _wait_for_end(self, child: Child) -> None:
        """Wait until a process has ended; kill it when its grace is over."""
        if not child.ending:
            child.ending = True
            with trio.move_on_after(self._runner.grace + MARGIN):
                await child.ended.wait()
                return
            log.error("%s has not ended in its grace: killed", child)
            child.process.kill()
        await child.ended.wait()

    # All of them.

    async def _keep(self, place: int) -> None:
        """See that a process serves at a place."""
        failures = 0
        while not self._stopping:
            child = self._serving[place]
            if child is not None:
                await child.left.wait()
            async with self._changing[place]:
                if self._stopping or (child is not None and self._serving[place] is not child):
                    continue  # it has a successor
                if child is not None:
                    stable = trio.current_time() > child.began + STABLE
                    failures = 0 if stable else failures + 1
                    log.error("%s died: %s; it is replaced", child, describe(child.code))
                    self._serving[place] = None
                with trio.move_on_after(backoff(SOON, SELDOM, failures) if failures else 0):
                    await self._hurry.wait()
                if not self._stopping and not await self._try_to_start(place):
                    failures += 1

    async def roll(self) -> None:
        """Replace the processes, one after the other; each serves before its predecessor ends."""
        log.info("the processes are replaced")
        self._hurry.set()
        self._hurry = trio.Event()
        for place, changing in enumerate(self._changing):
            async with changing:
                former = self._serving[place]
                if self._stopping:
                    return
                if former is None:  # it is being replaced anyway
                    continue
                try:
                    await self._start(place)
                except StartFailed as error:
                    log.error(  # noqa: TRY400
                        "the restart is given up, since process %d cannot be replaced: %s",
                        place,
                        error,
                    )
                    return
            # Outside the lock: a successor that dies is replaced meanwhile.
            if not self._stopping:
                await self._end(former, control.RETIRE)

    async def _follow_source(self) -> None:
        """Replace the processes whenever a source file changes."""
        from watchfiles import PythonFilter, awatch

        log.info("watching %s", self._runner.app_dir)
        try:
            async for changes in awatch(self._runner.app_dir, watch_filter=PythonFilter()):
                log.info("changed: %s", ", ".join(sorted({path for _, path in changes})))
                self._reloads.request()
        except* (OSError, RuntimeError) as group:  # such as that of watches of inotify
            log.error("the source is not watched any more: %s", group.exceptions[0])  # noqa: TRY400

    async def _drain(self) -> None:
        for listener in self._listeners:
            listener.refuse_connections()
        async with trio.open_nursery() as nursery:
            for child in self._children:
                nursery.start_soon(self._end, child)
        log.info("stopped: %(statistics)s", {"statistics": self.statistics()})
        self._nursery.cancel_scope.cancel()

    async def _stop(self, code: int) -> None:
        self._exit_code = code  # `_drain` may be the first to see that all have ended
        for child in self._children:
            child.order(control.STOP)
        with trio.move_on_after(MARGIN):
            for child in tuple(self._children):
                await child.ended.wait()
        self._nursery.cancel_scope.cancel()

    def _signalled(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGHUP:
                self._reloads.request()
            case signal.SIGUSR1:
                log.info("statistics: %(statistics)s", {"statistics": self.statistics()})
            case _ if self._stopping:
                self._nursery.start_soon(self._stop, 128 + number)
            case _:
                self._stopping = True
                self._notifier.stopping()
                self._nursery.start_soon(self._drain)

    def _status(self) -> str:
        counts = self.statistics()
        serve = sum(child is not None for child in self._serving)
        return f"{serve} processes, " + control.summary(counts)
