"""A request whose caller waits for it: `Client.request`."""

from __future__ import annotations

import outcome
import trio

from .._errors import ConnectionLost
from .._protocol.envelope import Frames
from .backoff import back_off
from .multiplexer import Multiplexer


class SingleRequest:
    """A request of the current task; a `PendingRequest`.

    Args:
        multiplexer: Sends it.
        body: The frames to send.
        deadline: When the task stops waiting, in trio's time; infinity for never.
        seconds: The time until the deadline.
    """

    __slots__ = ("_multiplexer", "_task", "body", "correlation", "deadline", "seconds")

    def __init__(
        self, multiplexer: Multiplexer, body: Frames, deadline: float, seconds: float
    ) -> None:
        self.body = body
        self.deadline = deadline
        self.seconds = seconds
        self.correlation = 0
        self._multiplexer = multiplexer
        self._task = trio.lowlevel.current_task()

    @trio.lowlevel.enable_ki_protection  # the task that is woken must be waiting
    async def attempt(self) -> Frames:
        """Send it when there is a connection, and wait for the reply."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (correlation := self._multiplexer.send(self)):
            state = await self._multiplexer.wait_connected()
            if state is not None:
                raise self._multiplexer.not_connected(self, state)
        self.correlation = correlation
        reply: Frames = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return reply

    async def attempts(self, retries: int) -> Frames:
        """Send it until there is a reply or an error, or no retry is left."""
        for retry in range(retries):
            try:
                return await self.attempt()
            except ConnectionLost:
                await back_off(retry)
        return await self.attempt()

    def replied(self, body: Frames) -> None:
        """As in `PendingRequest`."""
        trio.lowlevel.reschedule(self._task, outcome.Value(body))

    def failed(self, error: Exception) -> None:
        """As in `PendingRequest`."""
        trio.lowlevel.reschedule(self._task, outcome.Error(error))

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        """The task is cancelled or interrupted, or has timed out."""
        self._multiplexer.give_up(self)
        return trio.lowlevel.Abort.SUCCEEDED
