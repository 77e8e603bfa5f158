"""Where plain functions run: threads that live on, and take one granted request after the other.

Nothing can stop a thread. So a request that ends lets go of its client, but keeps its turn until
its thread is through with it, and there are as many threads as turns at the most: the pool is
bounded by its construction. A function learns that its request has ended in `check_cancelled`.

Each thread is one long call of `trio.to_thread.run_sync`, so `trio.from_thread` works in it. The
threads take the granted requests from the queue themselves. One is called up for any number of
them; if it finds more than one it calls up two others before it starts. So functions that are
quick are run in a row by few threads, and those that take their time have all threads soon. What
is done is collected: however many are done before the loop looks, it is woken once.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from threading import Lock

import trio

from ._connection import UNSTOPPABLE, Call, Connection, Desk
from ._request import current_request
from ._turns import Turns
from ._workers import Handler, ends_program

Done = tuple[Call, object, BaseException | None]
"""A request, what its handler has returned, and what it has raised."""


class SharedTurns(Turns[Connection, Call]):
    """Turns that threads give back themselves, each when it is through with its request.

    `release` may be called in any thread, and everything else in the loop's. What is given back
    is put aside, for the loop to take when it has no free slot left. So a lock is needed only
    where somebody waits, or may. Who gives back looks for one who waits afterwards, and who
    queues one looks for what was given back afterwards: one of the two sees the other.
    """

    __slots__ = ("_lock", "_returned")

    def __init__(self, slots: int, per_client: int) -> None:
        super().__init__(slots, per_client)
        self._returned: deque[None] = deque()
        self._lock = Lock()

    @property
    def free(self) -> int:
        """As in `Turns`."""
        return self._free + len(self._returned)

    def release(self) -> None:
        """As in `Turns`."""
        self._returned.append(None)
        if self._queues:
            with self._lock:
                self._grant()

    def withdraw(self, client: Connection, item: Call) -> None:
        """As in `Turns`."""
        with self._lock:
            super().withdraw(client, item)

    def _queue(self, client: Connection, item: Call) -> bool:
        with self._lock:
            if self._returned and not self._queues:
                self._free = len(self._returned)
                for _ in range(self._free):
                    self._returned.popleft()
                return self.enter(client, item)
            accepted = super()._queue(client, item)
            if self._returned:
                self._grant()
            return accepted

    def _grant(self) -> None:
        while self._queues and self._returned:
            self._returned.popleft()
            Turns.release(self)  # by name: `super()` costs as much as what is called


class Threads:
    """The threads of a server.

    Args:
        handler: A plain function.
        desk: Whose turns they take.
    """

    def __init__(self, handler: Handler, desk: Desk) -> None:
        self._handler = handler
        self._desk = desk
        self._turns = desk.turns
        self._limiter = trio.CapacityLimiter(desk.turns.slots)
        self._threads = 0
        self._calls_up: SimpleQueue[bool] = SimpleQueue()  # False: to end
        self._running: set[Call] = set()  # changed by the threads
        self._done: deque[Done] = deque()
        self._told = False  # whether the loop knows that something is done
        self._fatal: list[BaseException] = []
        self._failed = trio.Event()

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended."""
        return sum(call.ended for call in tuple(self._running))

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Run handlers, until cancelled."""
        self._context = copy_context()
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._read)
                task_status.started()
                await self._failed.wait()
                raise self._fatal[0]
        finally:
            for _ in range(self._threads):
                self._calls_up.put(False)

    def start(self) -> None:
        """See that the requests that have a turn are taken by threads."""
        if self._turns.granted:
            # One for each request that is not done: none waits for another's thread.
            while self._threads < self._turns.slots - self._turns.free:
                self._threads += 1
                self._context.run(self._nursery.start_soon, self._thread)
            self._calls_up.put(True)

    @trio.lowlevel.enable_ki_protection
    async def _read(self) -> None:
        while True:
            await self._desk.carrier.receive()
            self.start()
            await trio.lowlevel.checkpoint()

    async def _thread(self) -> None:
        await trio.to_thread.run_sync(
            self._work, limiter=self._limiter, abandon_on_cancel=True, thread_name="trioreq"
        )

    def _work(self) -> None:
        """Take requests whenever called up (in a thread)."""
        granted, done, calls_up = self._turns.granted, self._done, self._calls_up
        call_handler, new_context = self._call, self._context.copy
        while calls_up.get():
            if len(granted) > 1:
                calls_up.put(True)
                calls_up.put(True)
            while granted:
                try:
                    call = granted.popleft()
                except IndexError:  # another thread was quicker
                    break
                done.append(new_context().run(call_handler, call))
                # The next function may take its time. Whoever is called up after now will tell.
                if calls_up.empty():
                    self._tell()
            self._tell()

    def _call(self, call: Call) -> Done:
        """Run the handler for a request, in a context of its own, and say how that ended."""
        current_request.set(call)
        self._running.add(call)
        try:
            call.scope = UNSTOPPABLE
            call.check_cancelled()  # the loop writes the reason first, and then reads the scope
            return call, self._handler(call), None
        except BaseException as error:  # noqa: BLE001  # it is raised, or answered, in the loop
            return call, None, error
        finally:
            self._running.discard(call)
            self._turns.release()

    def _tell(self) -> None:
        """Let the loop know that something is done, unless it knows."""
        if self._done and not self._told:
            self._told = True
            with suppress(trio.RunFinishedError):  # abandoned, and now nobody is there to be told
                self._token.run_sync_soon(self._collect)

    def _collect(self) -> None:
        """Take what is done: turns are free, and replies can go out."""
        self._told = False  # first: what is done from now on is told anew
        try:
            self._desk.carrier.gather(self._finish)
        except BaseException as error:  # noqa: BLE001  # `run` raises it: here it would end trio
            self._fatal.append(error)
            self._desk.stop()
            self._failed.set()

    def _finish(self) -> None:
        while self._done:
            call, result, error = self._done.popleft()
            if error is None:
                call.finish(result)
            elif ends_program(error):
                raise error
            else:
                call.fail(error)
