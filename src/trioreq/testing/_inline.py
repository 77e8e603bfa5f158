"""Plain functions on a virtual clock: they run in the loop's thread, and wait only in `sleep`."""

from __future__ import annotations

import time

import trio

from .._server.connection import Call, Desk
from .._server.handlers import Handler
from .._server.pool import Worker
from .._server.threads import Threads

try:
    import greenback
except ModuleNotFoundError:  # pragma: no cover  # what is needed for plain functions alone
    raise ModuleNotFoundError(
        "trioreq.testing needs greenback: pip install 'trioreq[testing]'"
    ) from None


class InlineThreads(Threads):
    """Threads that are none: greenlets, of which one runs at a time.

    They belong to the network, and not to the server: what still runs when the server has ended
    goes on for as long as the network lives, as an abandoned thread does.
    """

    def __init__(self, handler: Handler, desk: Desk, nursery: trio.Nursery) -> None:
        super().__init__(handler, desk)
        self._handler = handler
        self._turns = desk.turns
        self._outer = nursery

    def _spawn(self) -> None:
        """Run the requests that have a turn, each in a task."""
        while self._turns.grant():
            call = self._turns.granted.popleft()
            self._pool.context.run(self._outer.start_soon, self._inline, call)

    async def _inline(self, call: Call) -> None:
        worker = Worker(self._handler, self._turns)
        self._pool.working.add(worker)
        self._pool.done.append(await greenback.with_portal_run_sync(worker.run, call))
        self._pool.working.remove(worker)
        self._spawn()  # the turn that it gave back may be another's now
        self._collect()


def sleep(seconds: float) -> None:
    """Stand for work that takes this long, in a plain function that is a handler.

    On a network in memory the time passes on trio's clock, and everything else goes on
    meanwhile; in a thread it is `time.sleep`.

    Args:
        seconds: As for `trio.sleep`; not for ever.

    Raises:
        RuntimeError: It is called in trio's loop, where no plain handler runs.

    Example:
        >>> def handler(request):
        ...     for _ in range(10):
        ...         trioreq.check_cancelled()
        ...         trioreq.testing.sleep(1)
        ...     return b"done"
    """
    try:
        trio.lowlevel.current_task()
    except RuntimeError:  # in a thread
        time.sleep(seconds)
        return
    if not greenback.has_portal():
        raise RuntimeError("sleep is for plain functions that are handlers: here use trio.sleep")
    greenback.await_(trio.sleep(seconds))  # noqa: ASYNC105  # that is how it is awaited
