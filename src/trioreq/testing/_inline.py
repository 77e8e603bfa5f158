"""Plain functions on a virtual clock: they run in the event loop, and wait only in `sleep`."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import trio

from .._checks import check_duration
from .._finishing import NOT_ASYNC, Place, current_place
from .._request import Request, without_session
from .._server.handlers import Handler
from .._server.open_workers import OpenWorkers, RayPlace
from .._server.pending_request import PendingRequest
from .._server.thread_streams import Permit
from .._server.threads import ThreadPool
from .._statistics import WorkerStatistics
from .._workers import ProcessWorkers, RayWorkers

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
        self._requests.blocks.inline = True

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

    def _new_permit(self) -> Permit:
        """As in `ThreadPool`."""
        return InlinePermit()


class InlinePermit:
    """The permit of a greenlet; a `Permit`."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._sent = False

    def wait(self) -> bool:
        """As in `Permit`."""
        greenback.await_(self._event.wait())
        return self._sent

    def grant(self, *, sent: bool) -> None:
        """As in `Permit`."""
        self._sent = sent
        self._event.set()


class _InlineProcess:
    """Finishing blocks in a function that is killed in `sleep`: a `Place`."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def async_block(self, limit: float) -> AbstractAsyncContextManager[None]:
        """As in a process."""
        raise RuntimeError(NOT_ASYNC)

    def plain_block(self, limit: float) -> AbstractContextManager[None]:
        """A block of the task in whose greenlet the function runs."""
        return greenback.async_context(self._place.async_block(limit))


class InlineWorkers(OpenWorkers):
    """Tasks instead of workers that are killed: such a function ends in `sleep`."""

    def __init__(self, handler: Handler, workers: ProcessWorkers | RayWorkers) -> None:
        super().__init__(handler)
        self._handler = handler
        self._alive = workers.n + getattr(workers, "spares", 0)
        self._is_ray = isinstance(workers, RayWorkers)
        self._busy = 0

    async def _run(self, request: Request) -> Any:  # noqa: ANN401  # it is checked as any result
        self._busy += 1
        place = current_place.get()
        assert place is not None  # noqa: S101  # it is a handler
        current_place.set(RayPlace() if self._is_ray else _InlineProcess(place))
        try:
            distant = request.replace(frames=request.frames)
            distant._client = without_session(request.client)  # noqa: SLF001  # as in a process
            return await greenback.with_portal_run_sync(self._handler, distant)
        except trio.Cancelled:
            self._count_kill()
            raise
        finally:
            self._busy -= 1

    def statistics(self) -> WorkerStatistics:
        """As of processes."""
        alive = self._alive
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
