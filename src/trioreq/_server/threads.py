"""Plain functions in worker threads, each of which is one long call of `trio.to_thread.run_sync`.

A thread cannot be stopped. A request that ends lets its client go, but keeps its slot until its
function has returned, and there are as many threads as slots at most: the pool is bounded by its
construction. A function learns that its request has ended in `check_cancelled`. What the threads do
is in `pool`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Final

import trio

from .._functions import yields
from .._log import log
from .._protocol.envelope import Frames
from .._protocol.fair_queue import SharedFairQueue
from .._request import current_request
from .._statistics import WorkerStatistics
from .._transport.outbox import Outbox
from .._transport.router import BATCH
from .client import Client
from .handlers import Handler, ends_program
from .pending_request import PendingRequest, StreamRequest
from .pool import Pool, Worker
from .reader import Reader
from .requests import Requests
from .switch_interval import short_switch_interval
from .thread_streams import Part, ThreadTurn, Turn, run_generator

FIRST: Final = 64 * 1024  # bytes of the first batch after a wait: some thirty messages
RETRY: Final = 1.0  # seconds until another try, if a thread cannot be started


class ThreadPool:
    """Runs plain functions.

    The arguments are those of `HandlerTasks`, but for the handler and the queue.

    Args:
        handler: A plain function, or a plain generator function.
        queue: The slots that handlers take, and release in their threads.
    """

    killed = died = retired = 0

    def __init__(
        self,
        handler: Handler,
        reader: Reader,
        requests: Requests,
        queue: SharedFairQueue[Client, PendingRequest],
        outbox: Outbox,
        nursery: trio.Nursery,
        crashed: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._requests = requests
        self._queue = queue
        self._outbox = outbox
        self._nursery = nursery
        self._crashed = crashed
        self._limiter = trio.CapacityLimiter(queue.slots)
        self._token = trio.lowlevel.current_trio_token()
        self._clock_offset = trio.current_time() - time.perf_counter()
        self._out_of_threads = False
        self._context = copy_context()
        self._context.run(current_request.set, None)
        if yields(handler):
            handler = partial(run_generator, handler, self._send)
        self._pool = Pool(handler, queue, self._begin, self._wake, self._context)

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended."""
        return self._pool.abandoned

    def processor_times(self) -> dict[PendingRequest, float]:
        """As `Pool.processor_times`."""
        return self._pool.processor_times()

    def statistics(self) -> WorkerStatistics:
        """The threads now (in any thread)."""
        return self._pool.statistics()

    def start(self, requests: Sequence[PendingRequest]) -> None:
        """Let threads run requests that have a slot."""
        self._queue.granted.extend(requests)
        self._spawn()
        self._pool.wake_thread()

    @trio.lowlevel.enable_ki_protection
    async def lead(self) -> None:
        """Read, and hand requests to the threads, until cancelled."""
        try:
            await self._read()
        except BaseException:
            self._crashed()
            raise
        finally:
            self._pool.close()

    async def _read(self) -> None:
        reader, room, rested = self._reader, FIRST, False
        while True:
            batch = reader.read(room)
            if batch is None:
                room = FIRST
                # What it sends can eat the edge of a message that has come.
                if not self._prepare_to_sleep() or not reader.readable():
                    await reader.wait()
                    rested = True
                continue
            room = min(2 * room, BATCH)
            self._queue.granted.extend(batch)
            self._spawn()
            self._pool.spin()
            self._collect()
            if not rested:
                await trio.lowlevel.checkpoint()
            rested = False

    def _prepare_to_sleep(self) -> bool:
        """See to what is done and what is left; from now on the event loop has to be woken.

        Returns:
            Whether anything was done.
        """
        self._pool.awake = False
        self._pool.wake_thread()
        if not self._pool.done:  # one look: what is done after it wakes the event loop
            return False
        self._collect()
        return True

    def _collect(self) -> None:
        """Answer what is done."""
        done = self._pool.done
        self._outbox.cork()
        try:
            while done:
                request, result, error = done.popleft()
                if type(result) is Part:
                    assert isinstance(request, StreamRequest)  # noqa: S101  # the handler yields
                    self._take_part(request, result)
                elif error is None:
                    self._requests.finish(request, result)
                elif ends_program(error):
                    raise error
                else:
                    self._requests.fail(request, error)
        finally:
            self._outbox.flush()

    # Streams.

    def _new_turn(self) -> Turn:
        return ThreadTurn()

    def _send(self, request: PendingRequest, body: Frames | None) -> None:
        """Send a reply of a stream, or its end, and wait until that is done (in a thread).

        Raises:
            RequestCancelled: The request has ended.
        """
        request.check_cancelled()
        part = Part(body, self._new_turn())
        self._pool.hand_over((request, part, None))
        part.turn.wait()
        request.check_cancelled()

    def _take_part(self, request: StreamRequest, part: Part) -> None:
        """Send it at once if that may be, or as soon as it may."""
        self._outbox.flush()  # from here on it is known whether the connection accepts more
        if request.ended or self._requests.may_send(request):
            self._send_part(request, part)
        else:
            self._nursery.start_soon(self._send_later, request, part, name=request.owner.task_name)

    async def _send_later(self, request: StreamRequest, part: Part) -> None:
        try:
            await self._requests.wait_to_send(request, part=part.body is not None)
        finally:
            self._send_part(request, part)

    def _send_part(self, request: StreamRequest, part: Part) -> None:
        if part.body is None:
            self._requests.end_stream(request)
        else:
            self._requests.send_part(request, part.body)
        part.turn.give()

    def _spawn(self) -> None:
        for worker in self._pool.spawn():
            self._context.run(self._start_worker, worker)

    def _start_worker(self, worker: Worker) -> None:
        self._nursery.start_soon(self._thread, worker, name="worker thread")

    async def _thread(self, worker: Worker) -> None:
        """Start a thread, as soon as that is possible, and wait for its end."""
        while True:
            try:
                with short_switch_interval():
                    await trio.to_thread.run_sync(
                        self._pool.work,
                        worker,
                        limiter=self._limiter,
                        abandon_on_cancel=True,
                        thread_name="trioreq",
                    )
            except RuntimeError as error:
                if worker.has_thread:
                    self._crashed()
                    raise
                if not self._out_of_threads:
                    self._out_of_threads = True
                    log.error(  # noqa: TRY400  # no fault of the code here
                        "cannot start a worker thread, and retry every %g s; requests wait for "
                        "threads that run already: %s",
                        RETRY,
                        error,
                    )
                await trio.sleep(RETRY)
            except BaseException:
                self._crashed()
                raise
            else:
                return

    def _begin(self, request: PendingRequest) -> None:
        """A request is to be run (in its thread, where trio's clock cannot be read)."""
        now = time.perf_counter() + self._clock_offset
        self._requests.begin_in_thread(request, now)

    def _wake(self) -> None:
        """Wake the event loop to see to what is done (in any thread)."""
        with suppress(trio.RunFinishedError):  # the thread was abandoned, and trio has ended since
            self._token.run_sync_soon(self._woken)

    def _woken(self) -> None:
        """See to what is done, in the event loop. An exception here would end trio itself."""
        try:
            self._prepare_to_sleep()
        except BaseException as error:
            if self._pool.closed:
                log.exception("a plain function failed after the server had stopped")
            else:
                self._nursery.start_soon(self._raise, error)

    async def _raise(self, error: BaseException) -> None:
        self._crashed()
        raise error
