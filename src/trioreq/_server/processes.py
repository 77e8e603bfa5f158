"""Plain functions in worker processes, by trio-parallel.

The server runs them as async handlers, each of which awaits a call in a process. When such a
handler is cancelled, as any async handler is, it kills the process. So the rest of the server does
not know of processes.

Each process has a `WorkerContext` and a task of its own, which starts, calls, reaps and replaces
it. A handler that is cancelled does not wait for the end of its process: the slot is free at once,
and the next request takes another process.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from functools import update_wrapper
from itertools import count
from multiprocessing.shared_memory import SharedMemory
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import trio
from outcome import Error, Outcome

from .._errors import Code, ReplyError, WorkersFailed
from .._log import log
from .._nursery import open_own_nursery
from .._protocol.envelope import Frames
from .._request import Peer, Request
from .._statistics import WorkerStatistics
from .._workers import ProcessWorkers, pickled
from .handlers import Handler, name_of
from .worker import CELL, Answer, Setup, call, start, write_cell

try:
    import trio_parallel
except ModuleNotFoundError:  # pragma: no cover  # what is needed for processes alone
    raise ModuleNotFoundError(
        "ProcessWorkers needs trio-parallel: pip install 'trioreq[processes]'"
    ) from None

TRIES: Final = 5  # failed starts in a row, after which the server fails
PAUSE: Final = 0.1  # seconds after the first that failed; twice as long after each further one
ALONE: Final = nullcontext()  # instead of a limiter: a process has one call at a time
CLOSING: Final = 5.0  # seconds that an idle process has to end by itself
peer_fields: Callable[[Peer], Any] = attrgetter(*Peer.__dataclass_fields__)


class Job:
    """One call of the handler.

    Attributes:
        args: The arguments of `worker.call`.
        done: Set when the call has ended.
        answer: Its result or error; None if the handler was not called.
    """

    __slots__ = ("answer", "args", "done", "number")

    def __init__(self, request: Request, number: int) -> None:
        deadline = request.deadline
        if deadline != math.inf:
            deadline += time.monotonic() - trio.current_time()
        self.number = number
        self.args = (peer_fields(request.client), request.frames, deadline, number)
        self.done = trio.Event()
        self.answer: Answer = None


class Process:
    """A worker process that runs.

    Attributes:
        pid: Its process id, and the id of its process group.
        place: Its index among the server's processes, which its replacement inherits.
        job: Its next job; None if that has begun, or the process is idle.
        called: How many calls it has had.
        was_killed: Whether the server has killed it.
    """

    def __init__(self, pid: int, place: int) -> None:
        self.pid = pid
        self.place = place
        self.job: Job | None = None
        self.called = 0
        self.was_killed = False
        self.wake = trio.Event()

    def begin(self, job: Job) -> None:
        """Give it a job, which its task runs."""
        self.job = job
        self.wake.set()

    def kill_group(self) -> None:
        """Kill it, and all processes that it has started.

        Also after its end: the kernel does not reuse the id while the group has a process.
        """
        with suppress(ProcessLookupError, PermissionError):  # macOS has the latter for zombies
            os.killpg(self.pid, signal.SIGKILL)


class Processes:
    """The worker processes of a server; `open_processes` makes them.

    Args:
        handler: A plain function.
        workers: The options.
        nursery: Runs the tasks.
        memory: Shared memory that says which requests have ended; None without a grace.

    Attributes:
        run: The async handler.
        killed: Processes that were killed, because their requests had ended early.
        died: Processes that ended by themselves.
        retired: Processes that were replaced between two requests, as `ProcessWorkers` says.
    """

    def __init__(
        self,
        handler: Handler,
        workers: ProcessWorkers,
        nursery: trio.Nursery,
        memory: SharedMemory | None,
    ) -> None:
        self._functions = pickled(handler, workers)
        self._workers = workers
        self._nursery = nursery
        self._memory = memory
        self._idle: deque[Process] = deque()  # the last one that ran is used first
        self._waiting = trio.lowlevel.ParkingLot()  # handlers that wait for an idle process
        self._alive: set[Process] = set()
        self._numbers = count(1)
        self._has_failed = False
        self.killed: int = 0
        self.died: int = 0
        self.retired: int = 0

        @trio.lowlevel.enable_ki_protection
        async def run(request: Request) -> Frames:
            return await self._run(request)

        update_wrapper(run, handler)
        run.__qualname__ = name_of(handler)
        self.run: Callable[[Request], Awaitable[Frames]] = run

    def statistics(self) -> WorkerStatistics:
        """The processes now (in any thread)."""
        alive, spare = len(self._alive), len(self._idle)
        return WorkerStatistics(alive=alive, spare=spare, busy=max(alive - spare, 0))

    # In the handlers' tasks.

    async def _run(self, request: Request) -> Frames:
        """Handle a request in a process."""
        while True:
            while not self._idle:  # more were killed than there are spares
                await self._waiting.park()
            process = self._idle.pop()
            job = Job(request, next(self._numbers))
            process.begin(job)
            try:
                await job.done.wait()
            except trio.Cancelled:
                self._end_early(process, job, request)
                raise
            answer = job.answer
            if isinstance(answer, Error):
                answer.unwrap()
            elif answer is not None:
                return answer

    def _end_early(self, process: Process, job: Job, request: Request) -> None:
        """The request of a job has ended before the job."""
        if process.job is job:  # it has not begun
            process.job = None
        elif job.done.is_set():
            pass  # the process is idle again, or has another job
        elif self._memory is None or request.cancel_reason is None:
            self._kill(process, job)
        else:
            write_cell(self._memory, process.place, job.number, request.cancel_reason)
            self._nursery.start_soon(self._kill_later, process, job)

    async def _kill_later(self, process: Process, job: Job) -> None:
        with trio.move_on_after(self._workers.grace, shield=True):
            await job.done.wait()
        self._kill(process, job)

    def _kill(self, process: Process, job: Job) -> None:
        if not job.done.is_set():
            process.was_killed = True
            process.kill_group()

    def kill_all(self) -> None:
        """Kill the processes that still run when the program ends, as after a crash of trio.

        `multiprocessing` would wait for them.
        """
        for process in self._alive:
            process.kill_group()

    # In the processes' tasks.

    @trio.lowlevel.enable_ki_protection
    async def keep(self, place: int, started: trio.Event) -> None:
        """Keep one process running, until cancelled. A first start that fails is not retried."""
        failures = 0
        while True:
            try:
                async with self._open_process(place) as (context, process):
                    started.set()
                    failures = 0
                    await self._work(context, process)
            except WorkersFailed as error:
                failures += 1
                if self._has_failed:  # another task raises, which cancels this one
                    await trio.sleep_forever()
                if not started.is_set() or failures == TRIES:
                    self._has_failed = True
                    raise
                log.error("%s; it is retried", error)  # noqa: TRY400  # the last has its cause
                await trio.sleep(PAUSE * 2**failures)

    @asynccontextmanager
    async def _open_process(
        self, place: int
    ) -> AsyncIterator[tuple[trio_parallel.WorkerContext, Process]]:
        """Start a process, and kill its group at the end."""
        process: Process | None = None
        try:
            async with trio_parallel.open_worker_context(
                idle_timeout=math.inf, grace_period=CLOSING
            ) as context:
                process = await self._start(context, place)
                self._alive.add(process)
                yield context, process
        except trio_parallel.BrokenWorkerError as error:  # it was not idle when its context ended
            log.debug("a worker process did not end by itself: %s", error)
        finally:
            if process is not None:
                self._alive.discard(process)
                process.kill_group()

    async def _start(self, context: trio_parallel.WorkerContext, place: int) -> Process:
        setup = Setup(
            functions=self._functions,
            cell=None if self._memory is None else (self._memory.name, place),
            log_level=logging.root.level if logging.root.handlers else None,
            log_format=_log_format(),
        )
        try:
            started: Outcome[int] = await context.run_sync(
                start, setup, kill_on_cancel=True, limiter=ALONE
            )
        except (trio_parallel.BrokenWorkerError, OSError) as error:
            raise WorkersFailed(
                f"a worker process cannot be started: {cause_of_death(error)}"
            ) from error
        if isinstance(started, Error):
            cause = started.error
            raise WorkersFailed(
                f"a worker process cannot be started: {type(cause).__name__}: {cause}"
            ) from cause
        return Process(started.unwrap(), place)

    async def _work(self, context: trio_parallel.WorkerContext, process: Process) -> None:
        """Do the jobs of a process until it ends, or is to be replaced."""
        async with open_own_nursery() as nursery:
            nursery.start_soon(self._watch, process, nursery.cancel_scope)
            while not self._is_used_up(process):
                job = await self._next_job(process)
                if job is not None and not await self._do(context, process, job):
                    return
            self.retired += 1

    def _is_used_up(self, process: Process) -> bool:
        """Whether it is to be replaced between two requests."""
        after, above = self._workers.retire_after, self._workers.retire_above
        if process.called == after:
            return True
        return above is not None and process.called > 0 and resident_memory(process.pid) > above

    async def _next_job(self, process: Process) -> Job | None:
        """Wait for a job; returns None if its request has ended meanwhile."""
        self._idle.append(process)
        self._waiting.unpark()
        try:
            await process.wake.wait()
        except trio.Cancelled:
            if process in self._idle:
                self._idle.remove(process)
            elif process.job is not None:  # given in the same moment; another process takes it
                process.job.done.set()
            raise
        process.wake = trio.Event()
        job, process.job = process.job, None
        return job

    async def _do(self, context: trio_parallel.WorkerContext, process: Process, job: Job) -> bool:
        """Do a job; returns whether the process can do another."""
        process.called += 1
        cause = "between two requests"
        try:
            job.answer = await context.run_sync(call, *job.args, limiter=ALONE)
        except (trio_parallel.BrokenWorkerError, OSError) as error:
            cause = cause_of_death(error)
            if not process.was_killed:
                job.answer = Error(ReplyError(Code.HANDLER_FAILED, f"worker died: {cause}"))
        else:
            if job.answer is not None and not process.was_killed:  # it may be both
                return True
        finally:
            job.done.set()
        if process.was_killed:
            self.killed += 1
            log.debug("a worker process was killed, since its request had ended")
        else:
            self._report_death(cause)
        return False

    def _report_death(self, cause: str) -> None:
        self.died += 1
        log.error("worker died: %s", cause)

    async def _watch(self, process: Process, scope: trio.CancelScope) -> None:
        """Detect the death of an idle process, where the system has pidfds."""
        if not hasattr(os, "pidfd_open"):
            return
        with _pidfd(process.pid) as descriptor:
            await trio.lowlevel.wait_readable(descriptor)
        if process in self._idle:
            self._report_death("between two requests")
            scope.cancel()


def resident_memory(pid: int) -> int:
    """Bytes that a process has resident; 0 if it has ended."""
    with suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _log_format() -> logging.Formatter | None:
    """The first formatter of the root logger that can be pickled."""
    for handler in logging.root.handlers:
        with suppress(Exception):  # a formatter may raise anything when it is pickled
            pickle.dumps(handler.formatter)
            return handler.formatter
    return None


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def cause_of_death(error: BaseException) -> str:
    """The signal or the exit code of a process, from the error that trio-parallel has raised."""
    process = error.args[-1] if isinstance(error, trio_parallel.BrokenWorkerError) else None
    code = getattr(process, "exitcode", None)
    if code is None:  # trio-parallel has killed it, because it read half a reply
        return "while it sent its reply"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


@asynccontextmanager
async def open_processes(handler: Handler, workers: ProcessWorkers) -> AsyncIterator[Processes]:
    """Start a server's worker processes; all have started when the block begins.

    Raises:
        WorkersFailed: A process cannot be started, now or later; then the block is cancelled.
    """
    places = range(workers.n + workers.spares)
    with _shared_memory(CELL.size * len(places) if workers.grace else 0) as memory:
        async with open_own_nursery() as nursery:
            processes = Processes(handler, workers, nursery, memory)
            with _at_exit(processes.kill_all):
                starts = [trio.Event() for _ in places]
                for place, started in zip(places, starts, strict=True):
                    nursery.start_soon(processes.keep, place, started, name=f"worker {place}")
                for started in starts:
                    await started.wait()
                yield processes


@contextmanager
def _at_exit(function: Callable[[], None]) -> Iterator[None]:
    """Call a function if the program ends within the block."""
    atexit.register(function)
    yield
    atexit.unregister(function)


@contextmanager
def _shared_memory(size: int) -> Iterator[SharedMemory | None]:
    """Shared memory, unless the size is 0. If the server is killed, Python's tracker removes it."""
    if not size:
        yield None
        return
    memory = SharedMemory(create=True, size=size)
    try:
        yield memory
    finally:
        memory.close()
        memory.unlink()
