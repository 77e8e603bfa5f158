"""What worker threads do: they take one granted request after the other, and run its handler.

They take granted requests from the queue themselves; the event loop wakes one thread for any number
of them. Before a thread runs a function, which may take its time, it wakes another for what is
left, unless one is on its way already, and tells the event loop what is done, unless the event loop
is awake, which will do both. So quick functions are run in a row by one thread, and functions that
take their time soon have all threads. What is done is collected: the event loop looks at it when it
has read a batch, and before it sleeps, and is woken from sleep, or from a short spin after each
batch.

All of this rests on one rule: whoever writes, writes first, and then looks whether a reader must be
woken; whoever is about to park parks first, and then looks whether there is anything to read.
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

SPIN: Final = 0.00005  # seconds that the event loop waits for a thread: what it takes to wake one
SELDOM: Final = 255  # batches without a spin, at most, after spins in vain

Queue = SharedFairQueue[Client, PendingRequest]
Done = tuple[PendingRequest, object, BaseException | None]
"""A request, what its handler has returned, or yielded, and what it has raised."""


class Pool:
    """The threads of a server, or what they have in common: who starts them is not seen here.

    Args:
        handler: A plain function.
        queue: Where granted requests are taken, and slots released, in any thread.
        begin: Called in its thread with a request that is to be run; raises if it has ended.
        wake: Wakes the event loop; called in any thread.
        context: Handlers run in copies of it.

    Attributes:
        workers: Those that were spawned; they end when the pool is closed.
        done: What is to be answered.
        awake: Whether the event loop will call `wake_thread` and look at `done` of its own accord.
            Before it sleeps it unsets this first, and then does both.
        closed: Whether the threads end.
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
        self._parked: deque[Lock] = deque()  # the one that has run last at the end
        self._coming = False  # whether one was woken that has not looked around yet
        self.closed = False
        self.done: deque[Done] = deque()
        self.awake = False
        self._spinning: deque[Lock] = deque()  # the event loop, while it does
        self._in_vain = 0  # how many batches go without a spin after the next one in vain
        self._skip = 0  # how many go without from now on

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

    def processor_times(self) -> dict[PendingRequest, float]:
        """The requests whose functions run now, and what their threads have used (in any thread).

        Returns:
            Seconds of processor time, since the thread was started; nothing where the system does
            not tell.
        """
        times = {}
        for worker in tuple(self.workers):
            request, clock = worker.request, worker.clock
            if request is not None and clock is not None:
                with suppress(OSError):  # the thread has ended
                    times[request] = time.clock_gettime(clock)
        return times

    def spawn(self) -> Sequence[Worker]:
        """See that there is a worker for each request that has a slot.

        Returns:
            New workers, for each of which a thread is to be started, to `work`.
        """
        queue = self._queue
        new = []
        if len(self.workers) < queue.slots:
            # One for each request that is not done: none waits for another's thread. While requests
            # wait, a slot that is free now may be theirs in a moment.
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
        """See that a thread looks for what is granted, if there is anything."""
        if not self._coming and self._queue.grant():
            self._unpark()

    def spin(self) -> None:
        """Wake a thread for what is granted, and wait a moment for it (in the event loop).

        A quick function has returned before the event loop would be asleep, and to put it to sleep
        and wake it takes several times as long. A thread that runs has the GIL, for which the event
        loop would have to wait in any case. If nothing is done in that moment, the event loop goes
        on, and spins ever more rarely.
        """
        pause = Lock()
        pause.acquire()
        self.awake = True
        self._spinning.append(pause)
        self.wake_thread()  # last, so that the thread finds the GIL free
        if self._coming and not self.done:
            if self._skip:
                self._skip -= 1
            elif pause.acquire(timeout=SPIN) or self.done:
                self._in_vain = 0
            else:
                self._skip, self._in_vain = self._in_vain, min(2 * self._in_vain + 1, SELDOM)
        self._spinning.clear()

    def close(self) -> None:
        """Let threads end, each when it has finished its function."""
        self.closed = True
        for _ in self.workers:
            self._unpark()

    def _unpark(self) -> None:
        """Wake a parked thread, if there is one. It looks around, at all that is here."""
        try:
            wake = self._parked.pop()
        except IndexError:
            return
        self._coming = True
        wake.release()

    def work(self, worker: Worker) -> None:
        """Take requests whenever woken (in a thread)."""
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
                except IndexError:  # another thread was quicker
                    break
                # The function may take its time. A woken thread sees what is left, or the event
                # loop does.
                if not self.awake:
                    self.wake_thread()
                    if done:
                        self._tell()
                done.append(new_context().run(run, request))
            if done:
                self._tell()
            self._parked.append(wake)
            if granted or self.closed:  # since it has looked
                self._unpark()
            wake.acquire()

    def hand_over(self, done: Done) -> None:
        """Something is to be answered, and the function goes on (in its thread)."""
        self.done.append(done)
        self._tell()

    def _tell(self) -> None:
        """Wake the event loop if it sleeps or spins."""
        if not self.awake:
            self.awake = True
            self._wake()
        elif self._spinning:
            with suppress(IndexError):  # another thread was quicker, or it spins no more
                self._spinning.pop().release()


class Worker:
    """What runs handlers, one at a time: a thread.

    Attributes:
        request: Whose handler runs here.
        has_thread: Whether its thread was started.
        clock: Of the processor time of its thread, if the system has one.
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
        """Run the handler for a request, in a context of its own, and say how that ended."""
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
