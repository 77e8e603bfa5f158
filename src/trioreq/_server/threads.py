"""Plain functions in worker threads, each of which is one long call of `trio.to_thread.run_sync`.

A thread cannot be stopped. When a request ends early, its slot stays taken until its function has
returned. There are at most as many threads as slots, so the pool is bounded. A function detects the
end of its request with `check_cancelled`. `pool` has the loop of the threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

import trio
from trio_util import AsyncBool

from .._functions import yields
from .._log import log
from .._protocol.envelope import Frames
from .._protocol.fair_queue import SharedFairQueue
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
from .thread_streams import Part, Permit, ThreadPermit, run_generator

FIRST: Final = 64 * 1024  # bytes of the first batch after a wait: some thirty messages
RETRY: Final = 1.0  # seconds between two attempts to start a thread
LONG: Final = 0.05  # seconds after which a function is not slowed down by a short switch interval


class ThreadPool:
    """Runs plain functions.

    The arguments are those of `HandlerTasks`, except the handler and the queue.

    Args:
        handler: A plain function, or a plain generator function.
        queue: The slots that handlers take, and release in their threads.
    """

    finishing = killed = died = retired = 0

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
        self._in_use = AsyncBool(False)  # whether functions may run
        self._context = requests.blocks.new_context()
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
        self._in_use.value = True
        self._spawn()
        self._pool.wake_thread()

    @trio.lowlevel.enable_ki_protection
    async def lead(self) -> None:
        """Read, and hand requests to the threads, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_long_functions, name="switch interval")
                await self._read()
        except BaseException:
            self._crashed()
            raise
        finally:
            self._woken()  # from here on threads wake the event loop for what is done
            self._pool.close()

    async def _read(self) -> None:
        reader, room, rested = self._reader, FIRST, False
        while True:
            batch = reader.read(room)
            if batch is None:
                room = FIRST
                # A send can consume the signal for a message that has arrived (A11 in
                # docs/design.md).
                if not self._prepare_to_sleep() or not reader.readable():
                    await reader.wait()
                    rested = True
                continue
            room = min(2 * room, BATCH)
            self._queue.granted.extend(batch)
            self._in_use.value = True
            self._spawn()
            self._pool.spin()
            self._collect()
            if not rested:
                await trio.lowlevel.checkpoint()
            rested = False

    def _prepare_to_sleep(self) -> bool:
        """Wake a thread for remaining requests, and answer what is done.

        From now on threads wake the event loop for what is done.

        Returns:
            Whether anything was done.
        """
        self._pool.awake = False  # first, so that no wake-up is lost
        self._pool.wake_thread()
        if not self._pool.done:  # what is done after this check wakes the event loop
            return False
        self._collect()
        return True

    def _collect(self) -> None:
        """Answer the requests that are done, and then raise what ends the program."""
        done = self._pool.done
        fatal: BaseException | None = None
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
                    fatal = fatal or error
                else:
                    self._requests.fail(request, error)
        finally:
            self._outbox.flush()
        if fatal is not None:
            raise fatal

    # Streams.

    def _new_permit(self) -> Permit:
        return ThreadPermit()

    def _send(self, request: PendingRequest, body: Frames | None) -> None:
        """Send a reply of a stream, or its end, and wait until that is done (in a thread).

        Raises:
            RequestCancelled: The request has ended.
        """
        request.check_cancelled()
        part = Part(body, self._new_permit())
        self._pool.hand_over((request, part, None))
        if not part.permit.wait():
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
        sent = False
        if part.body is None:
            self._requests.end_stream(request)
        else:
            sent = self._requests.send_part(request, part.body)
        part.permit.grant(sent=sent)

    def _spawn(self) -> None:
        for worker in self._pool.spawn():
            self._context.run(self._start_worker, worker)

    def _start_worker(self, worker: Worker) -> None:
        self._nursery.start_soon(self._thread, worker, name="worker thread")

    async def _thread(self, worker: Worker) -> None:
        """Start a thread, retry until that succeeds, and wait for its end."""
        while True:
            try:
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
                    log.error(  # noqa: TRY400  # a limit of the system: no traceback
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

    async def _follow_long_functions(self) -> NoReturn:
        """Shorten the switch interval while any function runs for long.

        A short interval makes quick functions slower. No event reports that a function still
        runs, so this checks at intervals, while any function runs.
        """
        while True:
            await self._in_use.wait_value(True)
            await trio.sleep(LONG)
            if self._run_long():
                with short_switch_interval():
                    while self._run_long():  # noqa: ASYNC110  # there is no event for it
                        await trio.sleep(LONG)
            self._in_use.value = self._queue.free < self._queue.slots

    def _run_long(self) -> bool:
        return self._pool.started_before(trio.current_time() - LONG)

    def _begin(self, request: PendingRequest) -> None:
        """A request begins (in its thread, where trio's clock cannot be read)."""
        now = time.perf_counter() + self._clock_offset
        self._requests.begin_in_thread(request, now)

    def _wake(self) -> None:
        """Wake the event loop to answer what is done (in any thread)."""
        with suppress(trio.RunFinishedError):  # the thread was abandoned, and trio has ended since
            self._token.run_sync_soon(self._woken)

    def _woken(self) -> None:
        """Answer what is done, in the event loop."""
        try:
            self._prepare_to_sleep()
        except BaseException as error:  # an exception here would crash trio
            if self._pool.closed:
                log.exception("a plain function failed after the server had stopped")
            else:
                self._nursery.start_soon(self._raise, error)

    async def _raise(self, error: BaseException) -> None:
        self._crashed()
        raise error
