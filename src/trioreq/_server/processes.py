"""Plain functions in worker processes.

The server runs them as async handlers, each of which awaits an answer from a process. When such a
handler is cancelled, as any async handler is, it kills the process. So the rest of the server does
not know of processes.

Each process (`worker_process`) has a task, which starts it, reads its socket, and replaces it. A
handler that is cancelled does not wait for the end of its process: the slot is free at once, and
the next request takes another process. If the function is in a finishing block, the handler waits.
"""

from __future__ import annotations

import atexit
import math
import pickle
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import Final

import trio
from outcome import Error

from .._backoff import backoff
from .._errors import WorkersFailed
from .._finishing import current_place
from .._log import log
from .._nursery import open_own_nursery
from .._protocol.envelope import Frames
from .._request import Request
from .._statistics import WorkerStatistics
from .._workers import ProcessWorkers, pickled
from .finishing import Blocks, log_not_ended
from .handlers import Handler
from .open_workers import OpenWorkers
from .worker import call_of, read_message
from .worker_log import log_of_worker
from .worker_process import Job, Process, open_process, resident_memory

TRIES: Final = 5  # failed starts in a row, after which the server fails
PAUSE: Final = 0.2  # seconds after the first that failed; twice as long after each further one


class PutOff:
    """A finishing block in a process whose request has ended: a `Block`."""

    def __init__(self, seconds: float) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)

    def until(self) -> float:
        """As in `Block`."""
        return self.scope.deadline

    def lift(self) -> None:
        """As in `Block`."""
        self.scope.cancel()


class Processes(OpenWorkers):
    """The worker processes of a server; `open_processes` makes them.

    Args:
        handler: A plain function.
        workers: The options.

    Attributes:
        nursery: Runs the tasks.
    """

    nursery: trio.Nursery

    def __init__(self, handler: Handler, workers: ProcessWorkers) -> None:
        super().__init__(handler)
        self._functions = pickled(handler, workers)
        self._workers = workers
        self._idle: deque[Process] = deque()  # the last one that ran is used first
        self._waiting = trio.lowlevel.ParkingLot()  # handlers that wait for an idle process
        self._alive: set[Process] = set()
        self._numbers = count(1)
        self._has_failed = False

    def statistics(self) -> WorkerStatistics:
        """The processes now (in any thread)."""
        alive, spare = len(self._alive), len(self._idle)
        return WorkerStatistics(alive=alive, spare=spare, busy=max(alive - spare, 0))

    @property
    def finishing(self) -> int:
        """As in `OpenWorkers`."""
        found = 0
        for process in tuple(self._alive):
            job = process.job
            if job is not None and not job.ended_early:
                with suppress(ValueError):  # the process has ended, and its memory was closed
                    found += process.cell.limit(job.number) is not None
        return found

    # In the handlers' tasks.

    async def _run(self, request: Request) -> Frames:
        """Handle a request in a process."""
        number = next(self._numbers)
        message = pickle.dumps(call_of(request, number))
        while True:
            while not self._idle:  # more were killed than there are spares
                await self._waiting.park()
            process = self._idle.pop()
            job = Job(number)
            try:
                await process.channel.send(message)
                process.begin(job)
                await job.done.wait()
            except trio.BrokenResourceError:  # it has ended, and has not got all of the message
                continue
            except trio.Cancelled:
                await self._end_early(process, job, request)
                raise
            if isinstance(job.answer, Error):
                job.answer.unwrap()
            else:
                return job.answer

    async def _end_early(self, process: Process, job: Job, request: Request) -> None:
        """The request of a job has ended before the job."""
        if job.done.is_set() or process not in self._alive:  # or its task has failed
            return
        reason = request.cancel_reason
        if process.job is not job or reason is None:  # it has not got all of the message
            self._kill(process, job)
            return
        job.ended_early = True
        process.cell.end(job.number, reason, time.monotonic())
        limit = process.cell.limit(job.number)
        if limit is not None:
            await self._put_off(process, job, request, limit)
        elif self._workers.grace:
            self.nursery.start_soon(self._kill_later, process, job)
        else:
            self._kill(process, job)

    async def _put_off(self, process: Process, job: Job, request: Request, limit: float) -> None:
        """Kill it when the grace is over, and the limit of its finishing block.

        After the grace it kills itself where the block ends.
        """
        blocks = current_place.get()
        assert isinstance(blocks, Blocks)  # noqa: S101  # this is the task of a handler
        put_off = PutOff(max(limit, self._workers.grace))
        if not blocks.over:
            with blocks.counted(put_off), put_off.scope:
                with trio.move_on_after(self._workers.grace):
                    await job.done.wait()
                if process.cell.limit(job.number) is not None:
                    await job.done.wait()
        is_in_block = process.cell.limit(job.number) is not None
        if is_in_block and not (job.done.is_set() or blocks.over):
            log_not_ended(request, limit)
        self._kill(process, job)

    async def _kill_later(self, process: Process, job: Job) -> None:
        with trio.move_on_after(self._workers.grace, shield=True):
            await job.done.wait()
        self._kill(process, job)

    def _kill(self, process: Process, job: Job) -> None:
        if not job.done.is_set():
            process.was_killed = True
            process.kill_group()
            self._alive.discard(process)
            self._count_kill()

    def kill_all(self) -> None:
        """Kill the processes that still run, as after a crash of trio."""
        for process in self._alive:
            process.kill_group()

    # In the processes' tasks.

    @trio.lowlevel.enable_ki_protection
    async def keep(self, started: trio.Event) -> None:
        """Keep one process running, until cancelled. A first start that fails is not retried."""
        failures = 0
        while True:
            try:
                async with open_process(self._functions, self._workers.grace) as process:
                    started.set()
                    failures = 0
                    self._alive.add(process)
                    try:
                        await self._use(process)
                    finally:
                        self._alive.discard(process)
            except WorkersFailed as error:
                failures += 1
                if self._has_failed:  # another task raises, which cancels this one
                    await trio.sleep_forever()
                if not started.is_set() or failures == TRIES:
                    self._has_failed = True
                    raise
                log.error("%s; it is retried", error)  # noqa: TRY400  # the last has its cause
                await trio.sleep(backoff(PAUSE, math.inf, failures))

    async def _use(self, process: Process) -> None:
        """Let a process handle requests until it ends, or is to be replaced."""
        with process.reading:
            try:
                while not self._is_used_up(process):
                    self._offer(process)
                    if not await self._finish_job(process):
                        break
                else:
                    self.retired += 1
                    return
            finally:
                if process in self._idle:
                    self._idle.remove(process)
            process.kill_group()  # it may have closed the connection, and run on
            await process.ended.wait()
            if process.was_killed:
                return
            job = process.job
            if job is not None and job.ended_early and process.cause == "SIGKILL":
                self._count_kill()  # by itself, where its finishing block ended
                job.done.set()
                return
            error = self._count_death("between two requests" if job is None else process.cause)
            if job is not None:
                process.end(job, Error(error))

    async def _finish_job(self, process: Process) -> bool:
        """Read what a process sends until it can do another job; returns whether it can."""
        while (message := await process.channel.receive()) is not None:
            said = read_message(message)
            if isinstance(said, (bytes, int)):
                log_of_worker(said)
                await trio.lowlevel.checkpoint()  # there may be many
            elif process.job is not None:
                process.called += 1
                process.end(process.job, said)
                return not process.was_killed  # it may be both answered and killed
        return False

    def _offer(self, process: Process) -> None:
        """Offer a process to the requests."""
        self._idle.append(process)
        self._waiting.unpark()

    def _is_used_up(self, process: Process) -> bool:
        """Whether it is to be replaced between two requests."""
        after, above = self._workers.retire_after, self._workers.retire_above
        if process.called == after:
            return True
        return above is not None and process.called > 0 and resident_memory(process.pid) > above


@asynccontextmanager
async def open_processes(handler: Handler, workers: ProcessWorkers) -> AsyncIterator[Processes]:
    """Start a server's worker processes; all have started when the block begins.

    Raises:
        WorkersFailed: A process cannot be started, now or later; then the block is cancelled.
    """
    numbers = range(workers.n + workers.spares)
    processes = Processes(handler, workers)
    with _killed_at_exit(processes):
        async with open_own_nursery() as processes.nursery:
            starts = [trio.Event() for _ in numbers]
            for number, started in zip(numbers, starts, strict=True):
                processes.nursery.start_soon(processes.keep, started, name=f"worker {number}")
            for started in starts:
                await started.wait()
            yield processes


@contextmanager
def _killed_at_exit(processes: Processes) -> Iterator[None]:
    """Kill processes that still run at the end of the block, or of the program.

    None does unless trio has crashed, which may leave the block open. `multiprocessing` would wait
    for them at the end of the program.
    """
    atexit.register(processes.kill_all)
    try:
        yield
    finally:
        processes.kill_all()
        atexit.unregister(processes.kill_all)
