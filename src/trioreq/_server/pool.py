"""What threads do: they take one granted request after the other, and run its handler.

They take the granted requests from the queue themselves. The loop calls one up for any number of
them. Before a thread runs a function, which may take its time, it calls up another for what is
left, unless one is on its way already, and tells the loop what is done, unless the loop is awake,
which will do both. So functions that are quick are run in a row by one thread, and those that take
their time have all threads soon. What is done is collected: the loop looks at it when it has read
a batch, and before it sleeps, and is woken from sleep, or from a short rest after each batch.

All of this rests on one rule: who writes, writes first, and then looks whether somebody is there to
read it; who is about to park parks first, and then looks whether there is anything to read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from threading import Lock
from typing import Final

from .._protocol.fair_queue import Turns
from .._request import current_request
from .connection import UNSTOPPABLE, Call, Connection
from .handlers import Handler, ends_program

MOMENT: Final = 0.00005  # seconds that the loop rests: what it takes to wake a thread
SELDOM: Final = 255  # times that it does not, at the most, after it did in vain

Done = tuple[Call, object, BaseException | None]
"""A request, what its handler has returned, and what it has raised."""


class Pool:
    """The threads of a server, or what they have in common: who starts them is not seen here.

    Args:
        handler: A plain function.
        turns: Those that they take, and may give back in any thread.
        wake: Wakes the loop; called in any thread.

    Attributes:
        context: Handlers run in copies of it; set before the first thread works.
        working: Who is there to do it.
        done: What is to be answered.
        awake: Whether the loop will call `call_up` and `finish` of its own accord. Who is about to
            let it sleep unsets that first, and then calls both.
    """

    context: Context

    def __init__(
        self, handler: Handler, turns: Turns[Connection, Call], wake: Callable[[], object]
    ) -> None:
        self._handler = handler
        self._turns = turns
        self._wake = wake
        self.working: set[Worker] = set()
        self._parked: deque[Lock] = deque()  # the one that has run last at the end
        self._coming = False  # whether one is called up that has not looked around yet
        self._closed = False
        self.done: deque[Done] = deque()
        self.awake = False
        self._resting: deque[Lock] = deque()  # the loop, while it does
        self._in_vain = 0  # how often it is not to, after it did in vain the next time
        self._skip = 0  # how often it is not to, from now on

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended."""
        calls = [worker.call for worker in self.working]
        return sum(call.ended for call in calls if call is not None)

    def spawn(self) -> Sequence[Worker]:
        """See that there is somebody for each request that has a turn.

        Returns:
            Those for whom a thread is to be started, to `work`.
        """
        turns = self._turns
        new = []
        if len(self.working) < turns.slots:
            # One for each request that is not done: none waits for another's thread. While others
            # wait, a turn that is free now may be theirs in a moment.
            busy = turns.slots if turns.waiting else turns.slots - turns.free
            while len(self.working) < busy:
                new.append(Worker(self._handler, turns))
                self.working.add(new[-1])
        return new

    def call_up(self) -> None:
        """See that somebody looks for what is granted, if there is anything."""
        if not self._coming and self._turns.grant():
            self._unpark()

    def rest(self) -> None:
        """Call a thread up for what is granted, and wait a moment for it (in the loop).

        A function that is quick is through before the loop would be asleep, and to send the loop
        to sleep and wake it takes several times as long. A thread that runs has Python's lock, for
        which the loop would have to wait in any case. If nothing is done in a moment, the loop
        goes on, and rests ever more rarely.
        """
        pause = Lock()
        pause.acquire()
        self.awake = True
        self._resting.append(pause)
        self.call_up()  # last, so that who wakes finds Python's lock free
        if self._coming and not self.done:
            if self._skip:
                self._skip -= 1
            elif pause.acquire(timeout=MOMENT) or self.done:
                self._in_vain = 0
            else:
                self._skip, self._in_vain = self._in_vain, min(2 * self._in_vain + 1, SELDOM)
        self._resting.clear()

    def close(self) -> None:
        """Let threads end, each when it is through with what it does."""
        self._closed = True
        for _ in self.working:
            self._unpark()

    def _unpark(self) -> None:
        """Call one up that is parked, if there is one. It looks around, at all that is here."""
        try:
            wake = self._parked.pop()
        except IndexError:
            return
        self._coming = True
        wake.release()

    def work(self, worker: Worker) -> None:
        """Take requests whenever called up (in a thread)."""
        turns, granted, done = self._turns, self._turns.granted, self.done
        new_context, run = self.context.copy, worker.run
        wake = Lock()
        wake.acquire()
        while not self._closed:
            self._coming = False
            while granted or turns.grant():
                try:
                    call = granted.popleft()
                except IndexError:  # another thread was quicker
                    break
                # The function may take its time. Who comes sees what is left, or the loop does.
                if not self.awake:
                    self.call_up()
                    if done:
                        self._tell()
                done.append(new_context().run(run, call))
            if done:
                self._tell()
            self._parked.append(wake)
            if granted or self._closed:  # since it has looked
                self._unpark()
            wake.acquire()

    def _tell(self) -> None:
        """Wake the loop if it sleeps or rests."""
        if not self.awake:
            self.awake = True
            self._wake()
        elif self._resting:
            with suppress(IndexError):  # another was quicker, or the loop rests no more
                self._resting.pop().release()

    def finish(self) -> None:
        """Answer what is done (in the loop)."""
        while self.done:
            call, result, error = self.done.popleft()
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

    __slots__ = ("_handler", "_turns", "call")

    def __init__(self, handler: Handler, turns: Turns[Connection, Call]) -> None:
        self._handler = handler
        self._turns = turns
        self.call: Call | None = None

    def run(self, call: Call) -> Done:
        """Run the handler for a request, in a context of its own, and say how that ended."""
        current_request.set(call)
        self.call = call
        try:
            call.scope = UNSTOPPABLE
            call.check_cancelled()  # the loop writes the reason first, and then reads the scope
            return call, self._handler(call), None
        except BaseException as error:  # noqa: BLE001  # it is raised, or answered, in the loop
            return call, None, error
        finally:
            self.call = None
            self._turns.release()
