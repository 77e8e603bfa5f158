"""Where plain functions run: threads that live on, each one long call of `trio.to_thread.run_sync`.

So `trio.from_thread` works in them. Nothing can stop a thread: a request that ends lets go of its
client, but keeps its turn until its thread is through with it, and there are as many threads as
turns at the most: the pool is bounded by its construction. A function learns that its request has
ended in `check_cancelled`. What the threads do is in `_pool`.
"""

from __future__ import annotations

from contextlib import suppress
from contextvars import copy_context

import trio

from .connection import Desk
from .handlers import Handler
from .pool import Pool, Worker

FIRST = 64 * 1024  # bytes to read after a wait, before what came is run: some thirty messages


class Threads:
    """The threads of a server.

    Args:
        handler: A plain function.
        desk: Whose turns they take.
    """

    def __init__(self, handler: Handler, desk: Desk) -> None:
        self._desk = desk
        self._pool = Pool(handler, desk.turns, self._wake)
        self._limiter = trio.CapacityLimiter(desk.turns.slots)
        self._fatal: list[BaseException] = []
        self._failed = trio.Event()

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended."""
        return self._pool.abandoned

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Run handlers, until cancelled."""
        self._pool.context = copy_context()
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._read)
                task_status.started()
                await self._failed.wait()
                raise self._fatal[0]
        finally:
            self._pool.close()

    def start(self) -> None:
        """See that the requests that have a turn are taken by threads."""
        self._spawn()
        self._pool.call_up()

    def _spawn(self) -> None:
        for worker in self._pool.spawn():
            self._pool.context.run(self._nursery.start_soon, self._thread, worker)

    @trio.lowlevel.enable_ki_protection
    async def _read(self) -> None:
        while True:
            waited = await self._desk.carrier.receive(FIRST, self._before_wait)
            self._spawn()
            self._pool.rest()
            self._collect()
            if not waited:
                await trio.lowlevel.checkpoint()

    def _before_wait(self) -> bool:
        """See to what is done and what is left; from now on the loop is to be told of it."""
        self._pool.awake = False
        self._pool.call_up()
        if not self._pool.done:  # one look: what is done after it is told
            return False
        self._collect()
        return True

    async def _thread(self, worker: Worker) -> None:
        await trio.to_thread.run_sync(
            self._pool.work,
            worker,
            limiter=self._limiter,
            abandon_on_cancel=True,
            thread_name="trioreq",
        )

    def _wake(self) -> None:
        """Let the loop see to what is done, in its sleep (in any thread)."""
        with suppress(trio.RunFinishedError):  # abandoned, and now nobody is there to be told
            self._token.run_sync_soon(self._before_wait)

    def _collect(self) -> None:
        """Take what is done: turns are free, and replies can go out."""
        try:
            self._desk.carrier.outbox.gather(self._pool.finish)
        except BaseException as error:  # noqa: BLE001  # `run` raises it: here it would end trio
            self._fatal.append(error)
            self._desk.stop()
            self._failed.set()
