"""One worker process, from its start to its end.

trio-parallel starts the process, reports how it has ended, and reaps it. To trio-parallel it has
one call, `worker.work`, from its start to its end. Requests, answers and log records go through a
socket.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import trio
from outcome import Error, Value

from .._errors import WorkersFailed
from .._log import log
from .._nursery import open_own_nursery
from .channel import ServerEnd
from .exit_codes import describe
from .worker import CELL_SIZE, Answer, Cell, Setup, read_message, work
from .worker_log import Levels, log_of_worker

try:
    import trio_parallel
except ModuleNotFoundError:  # pragma: no cover  # what is needed for processes alone
    raise ModuleNotFoundError(
        "ProcessWorkers needs trio-parallel: pip install 'trioreq[processes]'"
    ) from None

ALONE: Final = nullcontext()  # instead of a limiter: a process has one call
CLOSING: Final = 5.0  # seconds that an idle process has to end by itself
NO_PIDFDS: Final = (errno.ENOSYS, errno.EPERM)  # of an old kernel, and of some sandboxes
REAPING: Final = 1.0  # seconds in which another thread that has reaped a process has its code


class Job:
    """A request in a process.

    Attributes:
        number: Which of all requests.
        done: Set when it has ended.
        answer: The handler's result or error, then.
        ended_early: Whether its request has ended before it.
    """

    __slots__ = ("answer", "done", "ended_early", "number")

    answer: Answer

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = trio.Event()
        self.ended_early = False

    def end(self, answer: Answer) -> None:
        """It has ended."""
        self.answer = answer
        self.done.set()


class Process:
    """A process, from before its start until after its end.

    Args:
        cell: The memory that it shares with the server.

    Attributes:
        pid: Its process id, and the id of its process group; 0 while it starts.
        channel: The server's end.
        is_ready: Whether it was made ready for requests.
        job: What it does.
        called: How many requests it has answered.
        was_killed: Whether the server has killed it, since a request had ended.
        reading: The scope in which it is read; shielded while it has a job.
        ended: Whether it has ended.
        cause: Why it has ended.
    """

    channel: ServerEnd

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.pid = 0
        self.is_ready = False
        self.job: Job | None = None
        self.called = 0
        self.was_killed = False
        self.reading = trio.CancelScope()
        self.ended = trio.Event()
        self.cause = ""
        self._call = trio.CancelScope(shield=True)  # trio-parallel kills the process at its cancel

    async def start(self, context: trio_parallel.WorkerContext, nursery: trio.Nursery) -> None:
        """Start it, and accept its connection.

        Raises:
            WorkersFailed: It has ended before it has connected.
        """
        with _listener() as (path, listener), trio.CancelScope() as connecting:
            nursery.start_soon(self._live, context, path, connecting)
            await trio.lowlevel.wait_readable(listener)
            self.channel = ServerEnd(listener.accept()[0])
        if connecting.cancelled_caught:
            raise _not_started(self.cause)
        try:
            self.pid = await self.receive_start()
        except BaseException:
            self.channel.close()
            raise

    async def _live(
        self, context: trio_parallel.WorkerContext, path: str, connecting: trio.CancelScope
    ) -> None:
        """Its life: one call."""
        try:
            with self._call:
                try:
                    await context.run_sync(work, path, kill_on_cancel=True, limiter=ALONE)
                    self.cause = "its connection was closed"
                except Exception as error:  # noqa: BLE001  # what an import raises there too
                    self.cause = await cause_of_death(error)
        finally:  # what waits for its end is shielded
            self.ended.set()
            connecting.cancel()

    async def make_ready(self, setup: Setup) -> None:
        """Let it import and initialize what requests need.

        Raises:
            WorkersFailed: That has failed.
        """
        with suppress(trio.BrokenResourceError):  # its end is received
            await self.channel.send(pickle.dumps(setup))
        await self.receive_start()
        self.is_ready = True

    def begin(self, job: Job) -> None:
        """It does a job from now on. It is read until it has answered, or has ended."""
        self.job = job
        self.reading.shield = True

    def end(self, job: Job, answer: Answer) -> None:
        """Its job has ended."""
        job.end(answer)
        self.job = None
        self.reading.shield = False

    async def receive_start(self) -> int:
        """Receive its number, which it sends as it starts and when it is ready."""
        while (message := await self.channel.receive()) is not None:
            said: object = read_message(message)
            match said:
                case Value(pid):
                    return int(pid)
                case Error(error):
                    raise _failed_start(error) from error
                case bytes() | int() as record:
                    log_of_worker(record)
        await self.ended.wait()
        raise _not_started(self.cause)

    def kill_group(self) -> None:
        """Kill it, and all processes that it has started.

        Also after its end: the kernel does not reuse the id while the group has a process.
        """
        with suppress(ProcessLookupError, PermissionError):  # macOS has the latter for zombies
            os.killpg(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Let it end by itself if it is idle, and else kill it."""
        if self.pid:
            self.channel.close()
            if self.is_ready:
                with trio.move_on_after(CLOSING, shield=True):
                    await self.ended.wait()
            self.kill_group()
        self._call.cancel()


@asynccontextmanager
async def open_process(functions: bytes, grace: float) -> AsyncIterator[Process]:
    """Start a process, and kill its group at the end.

    Args:
        functions: The pickled handler and initializer.
        grace: As `ProcessWorkers` has it.

    Raises:
        WorkersFailed: It cannot be started, or made ready.
    """
    async with AsyncExitStack() as stack:
        try:
            memory = stack.enter_context(_shared_memory())
            process = Process(Cell(memory))
            setup = Setup(functions, memory.name, grace, Levels())
            context = await stack.enter_async_context(_open_context())
            nursery = await stack.enter_async_context(open_own_nursery())
            stack.push_async_callback(process.close)
            await process.start(context, nursery)
            await process.make_ready(setup)
            memory.unlink()  # both have it by now, and it ends with them
            await nursery.start(_watch, process)
        except OSError as error:  # the system lacks what it needs, such as file descriptors
            raise _failed_start(error) from error
        yield process


@asynccontextmanager
async def _open_context() -> AsyncIterator[trio_parallel.WorkerContext]:
    """A context of trio-parallel's for one process.

    At its end trio-parallel raises an error if the process was killed. That must not replace the
    exception of the block.
    """
    opened = trio_parallel.open_worker_context(idle_timeout=math.inf, grace_period=CLOSING)
    context = await opened.__aenter__()
    try:
        yield context
    finally:
        try:
            await opened.__aexit__(None, None, None)
        except (trio_parallel.BrokenWorkerError, RuntimeError) as error:  # the latter: no thread
            log.debug("a worker process did not end by itself: %s", error)


async def _watch(
    process: Process, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Detect the death of a process, where the system has pidfds.

    What it has forked may hold the connection open, and is killed.
    """
    with _pidfd(process.pid) as descriptor:
        task_status.started()
        if descriptor is None:
            return
        await trio.lowlevel.wait_readable(descriptor)
    process.kill_group()


def _failed_start(error: BaseException) -> WorkersFailed:
    return _not_started(f"{type(error).__name__}: {error}")


def _not_started(cause: str) -> WorkersFailed:
    return WorkersFailed(f"a worker process cannot be started: {cause}")


@contextmanager
def _listener() -> Iterator[tuple[str, socket.socket]]:
    """A socket to connect to, and its path, which is this user's alone."""
    with TemporaryDirectory(prefix="trioreq-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/worker"
        listener.bind(path)
        listener.listen(1)
        yield path, listener


def resident_memory(pid: int) -> int:
    """Bytes that a process has resident; 0 if it has ended."""
    with suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    """A descriptor that becomes readable when a process ends; None if the system has none.

    Raises:
        OSError: The system has none left.
    """
    descriptor = None
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in NO_PIDFDS:
                raise
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


async def cause_of_death(error: BaseException) -> str:
    """The signal or the exit code of a process, or why it has none, from trio-parallel's error."""
    if not isinstance(error, trio_parallel.BrokenWorkerError):
        return f"{type(error).__name__}: {error}"
    code = await _exit_code(error.args[-1])
    return "its exit code is unknown: the program has reaped it" if code is None else describe(code)


async def _exit_code(process: BaseProcess) -> int | None:
    """The exit code of a process that has ended; None if it cannot be had.

    A thread that starts a process lets multiprocessing reap all that have ended. Then this has no
    code until that thread goes on, for which there is no event. If the program reaps processes
    itself, or ignores SIGCHLD, it never has one.
    """
    with trio.move_on_after(REAPING):
        while process.exitcode is None:  # noqa: ASYNC110
            await trio.sleep(REAPING / 1000)
    return process.exitcode


@contextmanager
def _shared_memory() -> Iterator[SharedMemory]:
    """Memory for a cell."""
    memory: Any = SharedMemory(create=True, size=CELL_SIZE)
    try:
        if hasattr(os, "posix_fallocate"):  # if /dev/shm is full, a later write would be SIGBUS
            os.posix_fallocate(memory._fd, 0, CELL_SIZE)  # noqa: SLF001  # it has no public name
        yield memory
    finally:
        memory.close()
        with suppress(FileNotFoundError):  # it is done where the worker has started
            memory.unlink()
