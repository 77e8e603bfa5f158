"""The loop of worker threads: take a granted request, run its handler, take the next.

Threads take granted requests from the queue themselves; the event loop wakes one thread for any
number of requests. Before a thread runs a function, which may be slow, it wakes another thread for
the remaining requests, unless one was woken already, and wakes the event loop if requests are done.
It does neither while the event loop is awake, which then does both. So one thread runs quick
functions in a row, and slow functions soon have all threads. The event loop answers what is done
after each batch and before it sleeps, and is woken from sleep, or from a short spin after each
batch.

There are no lost wake-ups: publish, then check for waiters; register as a waiter, then check again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from threading import Lock
from typing import Final

from .._protocol.fair_queue import SharedFairQueue
from .._request import current_request
from .._statistics import WorkerStatistics
from .client import Client
from .from_thread import adapt_thread
from .handlers import Handler
from .pending_request import PendingRequest

SPIN: Final = 0.00005  # seconds that the event loop spins: about the time in which a thread wakes
MAX_SKIPS: Final = 255  # spins to skip, at most, after failed spins

Queue = SharedFairQueue[Client, PendingRequest]
Done = tuple[PendingRequest, object, BaseException | None]
"""A request, the result of its handler, and the exception that it raised."""


class Pool:
    """What the worker threads of a server share. `ThreadPool` starts them.

    Args:
        handler: A plain function.
        queue: Has the granted requests. Slots are released to it, in any thread.
        begin: Called in the thread before a request's handler; raises if the request has ended.
        wake: Wakes the event loop; called in any thread.
        context: Handlers run in copies of it.

    Attributes:
        workers: The workers that were spawned; they end when the pool is closed.
        done: Requests that are done, and not answered yet.
        awake: Whether the event loop will call `wake_thread` and answer `done` without a wake-up.
            Before it sleeps it clears this first, and then does both.
        closed: Whether the threads are to end.
    """

    def __init__(
        self,
        handler: Handler,
        queue: Queue,
        begin: Callable[[PendingRequest], None],
        wake: Callable[[], object],
        context: Context,
    ) -> None:
        self._handler = handler
        self._queue = queue
        self._begin = begin
        self._wake = wake
        self._context = context
        self.workers: set[Worker] = set()
        self._parked: deque[Lock] = deque()  # the last one that ran is woken first
        self._coming = False  # whether a woken thread has not checked the queue yet
        self.closed = False
        self.done: deque[Done] = deque()
        self.awake = False
        self._spinning: deque[Lock] = deque()  # the event loop's, while it spins
        self._backoff = 0  # spins to skip after the next failed spin
        self._skip = 0  # spins to skip from now on

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended (in any thread)."""
        # Copied in one step of the interpreter: another thread may change the set.
        requests = [worker.request for worker in tuple(self.workers)]
        return sum(request.ended for request in requests if request is not None)

    def statistics(self) -> WorkerStatistics:
        """The workers now (in any thread)."""
        requests = [worker.request for worker in tuple(self.workers)]
        spare = requests.count(None)
        return WorkerStatistics(alive=len(requests), spare=spare, busy=len(requests) - spare)

    def started_before(self, time: float) -> bool:
        """Whether a function runs that was called before that, by trio's clock."""
        for worker in tuple(self.workers):
            request = worker.request
            started = None if request is None else request.started_at
            if started is not None and started < time:
                return True
        return False

    def processor_times(self) -> dict[PendingRequest, float]:
        """The requests that run, with the processor time of their threads (in any thread).

        Returns:
            Seconds of processor time since the thread was started; empty where the system does not
            report it.
        """
        times = {}
        for worker in tuple(self.workers):
            request, clock = worker.request, worker.clock
            if request is not None and clock is not None:
                with suppress(OSError):  # the thread has ended
                    times[request] = time.clock_gettime(clock)
        return times

    def spawn(self) -> Sequence[Worker]:
        """Add workers until each request that has a slot has one.

        Returns:
            The new workers. The caller starts a thread for each, which runs `work`.
        """
        queue = self._queue
        new = []
        if len(self.workers) < queue.slots:
            # A worker for each request that runs, so that none waits for another's thread. While
            # requests are queued, one of them takes a free slot in a moment.
            busy = queue.slots if queue.waiting else queue.slots - queue.free
            while len(self.workers) < busy:
                new.append(self.worker())
        return new

    def worker(self) -> Worker:
        """A new worker."""
        worker = Worker(self._handler, self._queue, self._begin)
        self.workers.add(worker)
        return worker

    def wake_thread(self) -> None:
        """Wake a thread if requests are granted, unless one is about to take them."""
        if not self._coming and self._queue.grant():
            self._unpark()

    def spin(self) -> None:
        """Wake a thread for granted requests, and wait up to `SPIN` for it (in the event loop).

        A quick function returns in less time than the event loop takes to sleep and wake up. A
        thread that runs has the GIL, for which the event loop would wait in any case. After each
        failed spin, in which no request was done, more of the next spins are skipped.
        """
        pause = Lock()
        pause.acquire()
        self.awake = True
        self._spinning.append(pause)
        self.wake_thread()  # last, so that the thread finds the GIL free
        if self._coming and not self.done:
            if self._skip:
                self._skip -= 1
            elif pause.acquire(timeout=SPIN) or self.done:  # also if it waited long for the GIL
                self._backoff = 0
            else:
                self._skip, self._backoff = self._backoff, min(2 * self._backoff + 1, MAX_SKIPS)
        self._spinning.clear()

    def close(self) -> None:
        """End the threads, each when its function has returned."""
        self.closed = True
        for _ in tuple(self.workers):
            self._unpark()

    def _unpark(self) -> None:
        """Wake a parked thread, if there is one. It checks the queue, `done` and `closed`."""
        try:
            wake = self._parked.pop()
        except IndexError:
            return
        self._coming = True
        wake.release()

    def work(self, worker: Worker) -> None:
        """Run granted requests, until the pool is closed (in a thread)."""
        adapt_thread()
        queue, granted, done = self._queue, self._queue.granted, self.done
        new_context, run = self._context.copy, worker.run
        worker.has_thread = True
        worker.clock = thread_clock()
        wake = Lock()
        wake.acquire()
        while not self.closed:
            self._coming = False
            while granted or queue.grant():
                try:
                    request = granted.popleft()
                except IndexError:  # another thread has taken it
                    break
                # The function may be slow. So another thread takes the remaining requests, and the
                # event loop answers what is done; if it is awake, it sees to both itself.
                if not self.awake:
                    self.wake_thread()
                    if done:
                        self._notify()
                done.append(new_context().run(run, request))
            if done:
                self._notify()
            self._parked.append(wake)
            if granted or self.closed:  # registered as a waiter, it checks again
                self._unpark()
            wake.acquire()
        self.workers.discard(worker)

    def hand_over(self, done: Done) -> None:
        """Hand over a reply of a stream, whose generator goes on (in its thread)."""
        self.done.append(done)
        self._notify()

    def _notify(self) -> None:
        """Wake the event loop if it sleeps or spins."""
        if not self.awake:
            self.awake = True
            self._wake()
        elif self._spinning:
            with suppress(IndexError):  # another thread has woken it, or the spin is over
                self._spinning.pop().release()


class Worker:
    """Runs handlers in a thread, one at a time.

    Attributes:
        request: The request whose handler runs; None while it is idle.
        has_thread: Whether its thread was started.
        clock: The clock of its thread's processor time, if the system has one.
    """

    __slots__ = ("_begin", "_handler", "_queue", "clock", "has_thread", "request")

    def __init__(
        self, handler: Handler, queue: Queue, begin: Callable[[PendingRequest], None]
    ) -> None:
        self._handler = handler
        self._queue = queue
        self._begin = begin
        self.request: PendingRequest | None = None
        self.has_thread = False
        self.clock: int | None = None

    def run(self, request: PendingRequest) -> Done:
        """Run the handler for a request; returns its result or exception."""
        current_request.set(request)
        self.request = request
        try:
            self._begin(request)
            result = self._handler(request)
        except BaseException as error:  # noqa: BLE001  # handled in the event loop
            return request, None, error
        else:
            return request, result, None
        finally:
            self.request = None
            self._queue.release_in_thread()


def thread_clock() -> int | None:
    """The clock of this thread's processor time, for any thread; None if the system has none."""
    if not hasattr(time, "pthread_getcpuclockid"):  # as on macOS
        return None
    return time.pthread_getcpuclockid(threading.get_ident())
