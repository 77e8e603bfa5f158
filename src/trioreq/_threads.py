"""Where plain functions run: threads that live on, and take one granted request after the other.

Nothing can stop a thread. So a request that ends lets go of its client, but keeps its turn until
its thread is through with it, and there are as many threads as turns at the most: the pool is
bounded by its construction. A function learns that its request has ended in `check_cancelled`.

Each thread is one long call of `trio.to_thread.run_sync`, so `trio.from_thread` works in it. The
threads take the granted requests from the queue themselves. One is called up for any number of
them, and before it runs a function, which may take its time, it calls up another for what is left;
unless one is on its way already, which will do the same. So functions that are quick are run in a
row by few threads, and those that take their time have all threads soon. What is done is
collected: however many are done before the loop looks, it is woken once.

All of this rests on one rule: who writes, writes first, and then looks whether somebody is there to
read it; who is about to park parks first, and then looks whether there is anything to read.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from contextvars import copy_context
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

    `release` and `grant` may be called in any thread, and everything else in the loop's. What is
    given back is put aside, and granted in bulk: by a thread that finds nothing granted, and by
    the loop when it has queued some. A thread gives back first, and then looks for those who
    wait; the loop queues first, and then looks for what was given back: one of the two sees the
    other. So there is a lock for each lot of them, and not for each.
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

    @property
    def waiting(self) -> int:
        """As in `Turns`."""
        if not self._queues:  # nobody but the loop changes that
            return 0
        with self._lock:
            return super().waiting

    def release(self) -> None:
        """As in `Turns`, as soon as somebody calls `grant`."""
        self._returned.append(None)

    def grant(self) -> bool:
        """As in `Turns`."""
        if self._queues and self._returned:
            with self._lock:
                self._grant()
        return bool(self.granted)

    def _grant(self) -> None:
        while self._queues and self._returned:
            self._returned.popleft()
            Turns.release(self)  # by name: `super()` costs as much as what is called

    def withdraw(self, client: Connection, item: Call) -> None:
        """As in `Turns`."""
        with self._lock:
            super().withdraw(client, item)

    def _queue(self, client: Connection, item: Call) -> bool:
        with self._lock:
            self._grant()  # there may be room in the queue then
            if self._returned:
                self._free = len(self._returned)
                for _ in range(self._free):
                    self._returned.popleft()
                return self.enter(client, item)
            return super()._queue(client, item)


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
        self._working: set[Worker] = set()
        self._parked: deque[Lock] = deque()  # the one that has run last at the end
        self._coming = False  # whether one is called up that has not looked around yet
        self._closed = False
        self._done: deque[Done] = deque()
        self._told = False  # whether the loop knows that something is done
        self._fatal: list[BaseException] = []
        self._failed = trio.Event()

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended."""
        calls = [worker.call for worker in self._working]
        return sum(call.ended for call in calls if call is not None)

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
            self._closed = True
            for _ in self._working:
                self._call_up()

    def start(self) -> None:
        """See that the requests that have a turn are taken by threads."""
        turns = self._turns
        granted = turns.grant()
        if len(self._working) < turns.slots:
            # One for each request that is not done: none waits for another's thread. While others
            # wait, a turn that is free now may be theirs in a moment.
            busy = turns.slots if turns.waiting else turns.slots - turns.free
            while len(self._working) < busy:
                worker = Worker()
                self._working.add(worker)
                self._context.run(self._nursery.start_soon, self._thread, worker)
        if granted:
            self._call_up()

    def _call_up(self) -> None:
        """Call one up that is parked, if there is one. It looks around, at all that is here."""
        try:
            wake = self._parked.pop()
        except IndexError:
            return
        self._coming = True
        wake.release()

    @trio.lowlevel.enable_ki_protection
    async def _read(self) -> None:
        while True:
            await self._desk.carrier.receive()
            self.start()
            await trio.lowlevel.checkpoint()

    async def _thread(self, worker: Worker) -> None:
        await trio.to_thread.run_sync(
            self._work,
            worker,
            limiter=self._limiter,
            abandon_on_cancel=True,
            thread_name="trioreq",
        )

    def _work(self, worker: Worker) -> None:
        """Take requests whenever called up (in a thread)."""
        turns, granted, done = self._turns, self._turns.granted, self._done
        new_context, run, handler = self._context.copy, worker.run, self._handler
        wake = Lock()
        wake.acquire()
        while not self._closed:
            self._coming = False
            if done:
                self._tell()
            while granted or turns.grant():
                try:
                    call = granted.popleft()
                except IndexError:  # another thread was quicker
                    break
                # The function may take its time. Who comes sees what is left, and what is done.
                if not self._coming:
                    if granted or turns.grant():
                        self._call_up()
                    if done and not self._coming:
                        self._tell()
                done.append(new_context().run(run, handler, turns, call))
            self._tell()
            self._parked.append(wake)
            if granted or self._closed:  # since it has looked
                self._call_up()
            wake.acquire()

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


class Worker:
    """What runs handlers, one at a time: a thread.

    Attributes:
        call: Whose handler runs here.
    """

    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call: Call | None = None

    def run(self, handler: Handler, turns: Turns[Connection, Call], call: Call) -> Done:
        """Run the handler for a request, in a context of its own, and say how that ended."""
        current_request.set(call)
        self.call = call
        try:
            call.scope = UNSTOPPABLE
            call.check_cancelled()  # the loop writes the reason first, and then reads the scope
            return call, handler(call), None
        except BaseException as error:  # noqa: BLE001  # it is raised, or answered, in the loop
            return call, None, error
        finally:
            self.call = None
            turns.release()
