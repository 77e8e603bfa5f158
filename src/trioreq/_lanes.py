"""Where async handlers run: lanes, tasks that live on and take one request after the other.

A lane that has nothing to do reads: it is the leader, and there is one. It runs the handlers of
what it has read itself, one after the other, without asking trio in between. When a handler waits
for something, its lane is stuck with it, and calls up others, to take what is left and to lead. So
a request costs no task, no wake-up, and no cancel scope of its own: the handler runs in its
lane, in the lane's scope, and the end of the request cancels that. A lane makes a new scope only
when the last was used up. There is a lane for each turn at the most, and one to lead.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import copy_context
from types import coroutine
from typing import Any

import trio

from ._connection import Desk
from ._request import current_request
from ._workers import Handler, ends_program

IN_A_ROW = 128  # requests that a lane may take before trio's other tasks have their turn


class Lanes:
    """The lanes of a server.

    Args:
        handler: An async function.
        desk: Whose turns they take.
    """

    abandoned = 0

    def __init__(self, handler: Handler, desk: Desk) -> None:
        self._handler = handler
        self._desk = desk
        self._turns = desk.turns
        self._carrier = desk.carrier
        self._lanes = 0
        self._parked: list[trio.lowlevel.Task] = []  # the one that has run last at the end
        self._led = False  # whether a lane waits for what comes next
        self._eager = 1  # lanes to call up when the next handler waits

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Read, and run handlers, until cancelled."""
        self._context = copy_context()
        async with trio.open_nursery() as self._nursery:
            self._call_up(1)
            task_status.started()
            await trio.sleep_forever()

    def start(self) -> None:
        """See that the requests that have a turn are taken: somebody else has read them."""
        if self._turns.granted:
            self._call_up(1)

    def _call_up(self, lanes: int) -> None:
        """Call lanes up: parked ones if there are, and others if there may be."""
        for _ in range(lanes):
            if self._parked:
                trio.lowlevel.reschedule(self._parked.pop())
            elif self._lanes <= self._turns.slots:
                self._lanes += 1
                self._context.run(self._nursery.start_soon, self._lane)

    @trio.lowlevel.enable_ki_protection
    async def _lane(self) -> None:
        while self._context_is_clean():
            await self._serve()
        # A handler has left something in this task's context, which is not the next one's to
        # see: the lane ends, and another takes its place.
        self._carrier.release()
        self._lanes -= 1
        self._call_up(1)

    async def _serve(self) -> None:
        """Serve requests for as long as the scope lasts."""
        turns = self._turns
        row = 0
        call = None
        try:
            with trio.CancelScope() as scope:
                while True:
                    if row == IN_A_ROW or not turns.granted:
                        call = None  # a lane that waits holds no request
                        await self._next()
                        row = 0
                    row += 1
                    call = turns.granted.popleft()
                    if turns.granted:
                        self._carrier.holding = True
                    token = current_request.set(call)
                    try:
                        if call.ended:
                            continue
                        call.scope = scope
                        handling = self._handler(call)
                        trap, result = _begin(handling)
                        if trap is not None:
                            self._handler_waits()
                            result = await _go_on(handling, trap)
                    finally:
                        current_request.reset(token)
                        turns.release()
                    if not call.finish(result) or copy_context() != self._context:
                        break
        except BaseException as error:
            # Outside the scope, which takes its own Cancelled out of a group of exceptions.
            if call is None or ends_program(error):
                self._desk.stop()
                raise
            call.fail(error)

    async def _next(self) -> None:
        """Return when a request has its turn, and trio's other tasks had theirs."""
        turns = self._turns
        self._carrier.release()
        if turns.granted:
            await trio.lowlevel.checkpoint()
        while not turns.granted:
            if self._led:
                await self._park()
                continue
            self._led = True
            try:
                await self._carrier.receive()
            finally:
                self._led = False
            self._eager = 1
            if not turns.granted:
                await trio.lowlevel.checkpoint()

    def _handler_waits(self) -> None:
        """A handler waits: this lane is stuck, and others go on.

        If the next handler waits too, it is better to have more of them at once: each costs a
        pass of trio's loop to get going.
        """
        self._carrier.release()
        lanes = min(self._eager, len(self._turns.granted))
        self._call_up(lanes or not self._led)
        self._eager *= 2

    async def _park(self) -> None:
        """Wait to be called up."""
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _context_is_clean(self) -> bool:
        """Whether handlers have left the task's context as it was."""
        try:
            return copy_context() == self._context  # at once where nothing was set
        except Exception:  # noqa: BLE001  # some value's own __eq__: it was set, that is enough
            return False


# Ctrl-C may come while a handler runs, and ends the server whatever it interrupts. It is for the
# two below to let it in: the lane itself is protected.


@trio.lowlevel.disable_ki_protection
def _begin(handling: Coroutine[Any, Any, object]) -> tuple[object, object]:
    """Start a handler; returns what it waits for, or None and what it has returned."""
    try:
        return handling.send(None), None
    except StopIteration as done:
        return None, done.value


@coroutine
@trio.lowlevel.disable_ki_protection
def _go_on(handling: Coroutine[Any, Any, object], trap: object) -> Generator[object, Any, object]:
    """Await a handler that was started, and waits for `trap`."""
    try:
        while True:
            try:
                answer = yield trap
            except BaseException as error:  # noqa: BLE001  # it is the handler's to see
                trap = handling.throw(error)
            else:
                trap = handling.send(answer)
    except StopIteration as done:
        return done.value
