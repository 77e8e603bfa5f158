"""Where handlers run: lanes, tasks that live on and take one granted request after the other.

A lane keeps its cancel scope from request to request and makes a new one only when the last was
used up, so a request costs no task and no scope of its own. There are as many lanes as turns at
the most, and they are started as they are needed.

An async handler runs in its lane, in the lane's scope: the end of the request cancels it. A
plain function runs in a thread, which nothing can stop: its lane waits until the thread ends,
whatever becomes of the request, and so a thread counts until then.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import trio

from ._connection import Call, Connection
from ._request import Request, current_request
from ._turns import Turns

Handler = Callable[[Request], Any]

IN_A_ROW = 64  # requests that a lane may take before trio's other tasks have their turn


class Workers:
    """The lanes of a server.

    Args:
        handler: An async function, or a plain one.
        turns: Who may run.
        stop: Called when a handler asks the program to end (Ctrl-C, `SystemExit`).
    """

    def __init__(
        self, handler: Handler, turns: Turns[Connection, Call], stop: Callable[[], None]
    ) -> None:
        self._turns = turns
        self._stop = stop
        self._lanes = 0
        self._parked = trio.lowlevel.ParkingLot()
        self._threads: set[Call] = set()  # what threads work for; changed by themselves
        self._in_threads = not is_async(handler)
        if self._in_threads:
            self._handle: Callable[[Call], Awaitable[object]] = self._thread_runner(handler)
        else:
            self._handle = _interruptible(handler)

    @property
    def abandoned_threads(self) -> int:
        """Threads that still run for a request that has ended."""
        return sum(call.ended for call in tuple(self._threads))

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Run handlers, until cancelled."""
        self._context = copy_context()
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def wake(self) -> None:
        """A turn was granted: see that a lane takes it."""
        if self._parked:
            self._parked.unpark()
        elif self._lanes < self._turns.slots:
            self._lanes += 1
            self._context.run(self._nursery.start_soon, self._lane)

    @trio.lowlevel.enable_ki_protection
    async def _lane(self) -> None:
        while self._context_is_clean():
            await self._serve()
            await trio.lowlevel.checkpoint()
        # A handler has left something in this task's context, which is not the next one's to
        # see: the lane ends, and another takes its place.
        self._lanes -= 1
        if self._turns.granted:
            self.wake()

    async def _serve(self) -> None:
        """Serve requests for as long as the scope lasts, and not too many in a row."""
        call = None
        try:
            with trio.CancelScope() as scope:
                for _ in range(IN_A_ROW):
                    call = await self._next()
                    await self._run(call, scope)
                    if call.cancel_reason is not None or not self._context_is_clean():
                        break
                    call = None  # a lane that waits holds no request
        except BaseException as error:
            # Outside the scope, which takes its own Cancelled out of a group of exceptions.
            if call is None or _ends_program(error):
                self._stop()
                raise
            call.fail(error)

    async def _next(self) -> Call:
        """Wait for a granted request that has not ended meanwhile."""
        while True:
            while self._turns.granted:
                call = self._turns.granted.popleft()
                if not call.ended:
                    return call
                self._turns.release()
            await self._parked.park()

    async def _run(self, call: Call, scope: trio.CancelScope) -> None:
        token = current_request.set(call)
        call.begin(None if self._in_threads else scope)
        try:
            result = await self._handle(call)
        finally:
            current_request.reset(token)
            self._turns.release()
        call.finish(result)

    def _thread_runner(self, handler: Handler) -> Callable[[Call], Awaitable[object]]:
        """Run the handler in a thread, which is known to run until it really ends."""

        def run(call: Call) -> object:
            self._threads.add(call)
            try:
                return handler(call)
            finally:
                self._threads.discard(call)

        limiter = trio.CapacityLimiter(self._turns.slots)

        async def in_thread(call: Call) -> object:
            return await trio.to_thread.run_sync(run, call, limiter=limiter, abandon_on_cancel=True)

        return in_thread

    def _context_is_clean(self) -> bool:
        """Whether handlers have left the task's context as it was."""
        try:
            return copy_context() == self._context  # at once where nothing was set
        except Exception:  # noqa: BLE001  # some value's own __eq__: it was set, that is enough
            return False


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives a coroutine."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004  # an object with an async __call__
    )


def _interruptible(handler: Handler) -> Callable[[Call], Awaitable[object]]:
    """Let Ctrl-C into the handler, though not into the lane's own bookkeeping."""

    @trio.lowlevel.disable_ki_protection
    async def run(call: Call) -> object:
        return await handler(call)

    return run


def _ends_program(error: BaseException) -> bool:
    """Whether it is no failure of the handler, but of all that is around it."""
    if isinstance(error, BaseExceptionGroup):
        return any(_ends_program(part) for part in error.exceptions)
    return isinstance(error, trio.Cancelled | KeyboardInterrupt | SystemExit | GeneratorExit)
