"""Where async handlers run: lanes, tasks that live on and take one granted request after the other.

A lane keeps its cancel scope from request to request and makes a new one only when the last was
used up, so a request costs no task and no scope of its own. The handler runs in its lane, in the
lane's scope: the end of the request cancels it. There are as many lanes as turns at the most, and
they are started as they are needed.
"""

from __future__ import annotations

from contextvars import copy_context

import trio

from ._connection import Call, Desk
from ._request import current_request
from ._workers import Handler, ends_program

IN_A_ROW = 64  # requests that a lane may take before trio's other tasks have their turn


class Lanes:
    """The lanes of a server.

    Args:
        handler: An async function.
        desk: Whose turns they take; there are no more lanes than turns.
    """

    abandoned = 0

    def __init__(self, handler: Handler, desk: Desk) -> None:
        self._handler = handler
        self._desk = desk
        self._turns = desk.turns
        self._lanes = 0
        self._parked: list[trio.lowlevel.Task] = []  # the one that has run last at the end

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Run handlers, until cancelled."""
        self._context = copy_context()
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def start(self, lanes: int) -> bool:
        """Call up lanes, if there are requests for them; returns whether that was not for all."""
        granted = len(self._turns.granted)
        for _ in range(min(lanes, granted)):
            if self._parked:
                trio.lowlevel.reschedule(self._parked.pop())
            elif self._lanes < self._turns.slots:
                self._lanes += 1
                self._context.run(self._nursery.start_soon, self._lane)
        return granted > lanes

    @trio.lowlevel.enable_ki_protection
    async def _lane(self) -> None:
        while self._context_is_clean():
            await self._serve()
            await trio.lowlevel.checkpoint()
        # A handler has left something in this task's context, which is not the next one's to
        # see: the lane ends, and another takes its place.
        self._lanes -= 1
        self.start(1)

    async def _serve(self) -> None:
        """Serve requests for as long as the scope lasts, and not too many in a row."""
        turns = self._turns
        call = None
        try:
            with trio.CancelScope() as scope:
                for _ in range(IN_A_ROW):
                    while not turns.granted:
                        await self._park()
                    call = turns.granted.popleft()
                    if call.ended:
                        turns.release()
                    else:
                        call.scope = scope
                        result = await self._handle(call)
                        if not call.finish(result) or copy_context() != self._context:
                            break
                    call = None  # a lane that waits holds no request
        except BaseException as error:
            # Outside the scope, which takes its own Cancelled out of a group of exceptions.
            if call is None or ends_program(error):
                self._desk.stop()
                raise
            call.fail(error)

    async def _park(self) -> None:
        """Wait to be called up."""
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @trio.lowlevel.disable_ki_protection
    async def _handle(self, call: Call) -> object:
        """Run the handler. Ctrl-C may come in here, and ends the server whatever it interrupts."""
        token = current_request.set(call)
        try:
            return await self._handler(call)
        finally:
            current_request.reset(token)
            self._turns.release()

    def _context_is_clean(self) -> bool:
        """Whether handlers have left the task's context as it was."""
        try:
            return copy_context() == self._context  # at once where nothing was set
        except Exception:  # noqa: BLE001  # some value's own __eq__: it was set, that is enough
            return False
