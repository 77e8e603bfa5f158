"""Plain functions on a virtual clock: they run in the event loop, and wait only in `sleep`."""

from __future__ import annotations

import time
from functools import update_wrapper
from typing import Any

import trio

from .._checks import check_duration
from .._request import Request
from .._server.handlers import Handler
from .._server.pending_request import PendingRequest
from .._server.threads import ThreadPool
from .._statistics import WorkerStatistics
from .._workers import ProcessWorkers

try:
    import greenback
except ModuleNotFoundError:  # pragma: no cover  # what is needed for plain functions alone
    raise ModuleNotFoundError(
        "trioreq.testing needs greenback: pip install 'trioreq[testing]'"
    ) from None


class InlineThreads(ThreadPool):
    """Greenlets instead of threads. One runs at a time.

    They belong to the network, and not to the server: a function that still runs when the server
    has ended goes on until the network is closed, like an abandoned thread.
    """

    def __init__(self, *args: Any, outer: trio.Nursery) -> None:  # noqa: ANN401
        super().__init__(*args)
        self._outer = outer

    def _spawn(self) -> None:
        """Run the requests that have a slot, each in a task."""
        while self._queue.grant():
            request = self._queue.granted.popleft()
            self._context.run(self._outer.start_soon, self._inline, request)

    async def _inline(self, request: PendingRequest) -> None:
        worker = self._pool.worker()
        self._pool.done.append(await greenback.with_portal_run_sync(worker.run, request))
        self._pool.workers.remove(worker)
        self._spawn()  # its slot may be granted to another request
        self._woken()

    def _begin(self, request: PendingRequest) -> None:
        """As in `ThreadPool`, on trio's clock."""
        self._requests.begin_in_thread(request, trio.current_time())


class InlineProcesses:
    """Tasks instead of processes: a function that is killed ends in `sleep`.

    It has the interface of `Processes`.
    """

    died = retired = 0

    def __init__(self, handler: Handler, workers: ProcessWorkers) -> None:
        self._workers = workers
        self._busy = self.killed = 0

        async def run(request: Request) -> object:
            return await self._run(handler, request)

        update_wrapper(run, handler)
        self.run: Handler = run

    async def _run(self, handler: Handler, request: Request) -> object:
        self._busy += 1
        try:
            return await greenback.with_portal_run_sync(handler, request)
        except trio.Cancelled:
            self.killed += 1
            raise
        finally:
            self._busy -= 1

    def statistics(self) -> WorkerStatistics:
        """As of `Processes`."""
        alive = self._workers.n + self._workers.spares
        return WorkerStatistics(alive=alive, spare=alive - self._busy, busy=self._busy)


def sleep(seconds: float) -> None:
    """Simulate work that takes this long, in a handler that is a plain function.

    On a network in memory the time passes on trio's clock, and all tasks run meanwhile; in a
    thread it is `time.sleep`.

    Args:
        seconds: As for `trio.sleep`; finite.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or infinite.
        RuntimeError: It is called outside a plain function.

    Example:
        >>> def handler(request):
        ...     for _ in range(10):
        ...         trioreq.check_cancelled()
        ...         trioreq.testing.sleep(1)
        ...     return b"done"
    """
    check_duration("seconds", seconds)
    try:
        trio.lowlevel.current_task()
    except RuntimeError:  # in a thread
        time.sleep(seconds)
        return
    if not greenback.has_portal():
        raise RuntimeError("sleep is for plain functions that are handlers: here use trio.sleep")
    greenback.await_(trio.sleep(seconds))  # noqa: ASYNC105  # greenback awaits it
