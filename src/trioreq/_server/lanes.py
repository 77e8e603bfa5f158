"""Where async handlers run: lanes, tasks that live on and take one request after the other.

A lane that has nothing to do reads: it is the leader, and there is one. It runs the handlers of
what it has read itself, in a row, without asking trio in between. When a handler waits for
something, its lane is stuck with it, and calls up others, to take what is left and to lead. So
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

from .._request import current_request
from .connection import Call, Desk
from .handlers import Handler, ends_program

IN_A_ROW = 128  # requests that a lane may take before trio's other tasks have their turn
FIRST = 16 * 1024  # bytes to read after a wait, before what came is worked on: some eight messages


class Lanes:
    """The lanes of a server.

    Args:
        handler: An async function.
        desk: Whose turns they take.

    Attributes:
        in_a_row: Requests that were taken since trio's other tasks had their turn.
    """

    abandoned = 0

    def __init__(self, handler: Handler, desk: Desk) -> None:
        self.handler = handler
        self.desk = desk
        self._turns = desk.turns
        self._carrier = desk.carrier
        self._outbox = desk.carrier.outbox
        self._lanes = 0
        self._parked: list[trio.lowlevel.Task] = []  # the one that has run last at the end
        self._led = False  # whether a lane waits for what comes next
        self._eager = 1  # lanes to call up when the next handler waits
        self.in_a_row = 0

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Read, and run handlers, until cancelled."""
        current_request.set(None)  # in this task only; so a lane's own context has it too
        self.context = copy_context()
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
                self.context.run(self._nursery.start_soon, Lane(self).run)

    def lost(self) -> None:
        """A lane has come to its end: another takes its place."""
        self._outbox.release()
        self._lanes -= 1
        self._call_up(1)

    async def next(self) -> None:
        """Return when a request has its turn, and trio's other tasks had theirs."""
        turns = self._turns
        self._outbox.release()
        if turns.granted or self.in_a_row >= IN_A_ROW:  # to read more is no rest: there may be more
            self.in_a_row = 0
            await trio.lowlevel.checkpoint()
        while not turns.granted:
            if self._led:
                await self._park()
                continue
            self._led = True
            try:
                await self._carrier.receive(FIRST)
                if not turns.granted:
                    await trio.lowlevel.checkpoint()
            finally:
                self._led = False
            self._eager = 1
        self._outbox.holding = True  # the replies of the row go out together

    def handler_waits(self) -> None:
        """A handler waits: its lane is stuck, and others go on.

        If the next handler waits too, it is better to have more of them at once: each costs a
        pass of trio's loop to get going.
        """
        self._outbox.release()
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


class Lane:
    """A task that runs handlers, one at a time."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._call: Call | None = None  # whose handler runs here

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Run handlers, until cancelled."""
        while self._context_is_clean():
            await self._serve()
            self._let_go()
        # A handler has left something in this task's context, which is not the next one's to see.
        self._lanes.lost()

    async def _serve(self) -> None:
        """Serve requests for as long as the scope lasts."""
        try:
            with trio.CancelScope() as scope:
                going_on = True
                while going_on:
                    await self._lanes.next()
                    going_on = await self._watch(self._row(scope))
                    self._let_go()
        except BaseException as error:
            # Outside the scope, which takes its own Cancelled out of a group of exceptions.
            if self._call is None or ends_program(error):
                self._lanes.desk.stop()
                raise
            self._call.fail(error)

    @trio.lowlevel.disable_ki_protection
    async def _row(self, scope: trio.CancelScope) -> bool:
        """Run handlers one after the other, while requests are there to be taken.

        Ctrl-C may come meanwhile, except into `_finish`, and ends the server whatever it
        interrupts.

        Returns:
            Whether the lane is as it was before.
        """
        handler = self._lanes.handler
        turns = self._lanes.desk.turns
        granted = turns.granted
        for taken in range(1, IN_A_ROW + 1):  # noqa: B007  # it is used behind the loop
            if not granted:
                break
            self._call = call = granted.popleft()
            current_request.set(call)
            before = copy_context()
            try:
                if call.ended:
                    continue
                call.scope = scope
                result = await handler(call)
            finally:
                turns.release()
            if not _finish(call, result) or copy_context() != before:
                return False
        self._lanes.in_a_row += taken
        return True

    @coroutine
    def _watch(self, row: Coroutine[object, Any, bool]) -> Generator[object, Any, bool]:
        """Await a row, and see that others go on when one of its handlers waits.

        It does so by hand: `await` hands on what is waited for, and does not tell.
        """
        stuck = None
        try:
            trap = row.send(None)
            while True:
                if self._call is not stuck:
                    stuck = self._call
                    self._lanes.handler_waits()
                try:
                    answer = yield trap
                except BaseException as error:  # noqa: BLE001  # it is the handler's to see
                    trap = row.throw(error)
                else:
                    trap = row.send(answer)
        except StopIteration as done:
            return bool(done.value)

    def _let_go(self) -> None:
        """A lane that waits holds no request."""
        self._call = None
        current_request.set(None)

    def _context_is_clean(self) -> bool:
        """Whether handlers have left the task's context as it was."""
        try:
            return copy_context() == self._lanes.context  # at once where nothing was set
        except Exception:  # noqa: BLE001  # some value's own __eq__: it was set, that is enough
            return False


@trio.lowlevel.enable_ki_protection  # half a message would begin the next one
def _finish(call: Call, result: object) -> bool:
    """Protected here, and not in `Call`: see docs/design.md on what is compiled."""
    return call.finish(result)
