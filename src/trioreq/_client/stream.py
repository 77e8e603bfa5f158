"""A stream of replies to one request: `Client.stream`.

What has come and was not taken is kept here, at most as much as the server has credit for: a reply
without credit ends the stream. Credit is given as the consumer takes replies.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import trio

from .._errors import UnexpectedReply
from .._protocol import envelope as wire
from .._protocol.credit import Consumed, Credit
from .._protocol.envelope import Frames
from .connections import Connections
from .multiplexer import Multiplexer, PendingStream

Reply = TypeVar("Reply")


class Stream(PendingStream, Generic[Reply]):
    """A stream; a `PendingRequest`, and an async iterator of replies.

    It is sent again only if the server has not started it.

    Args:
        connections: The client's connections.
        body: The frames to send.
        deadline: When the stream ends at the latest, in trio's time; infinity for never.
        idle_timeout: Seconds that the consumer waits for one reply; infinity for no limit.
        shown: Makes of a reply what the consumer takes.
    """

    def __init__(
        self,
        connections: Connections,
        body: Frames,
        deadline: float,
        idle_timeout: float,
        shown: Callable[[Frames], Reply],
    ) -> None:
        self.body = body
        self.deadline = deadline
        self.seconds = deadline - trio.current_time()
        self.correlation = 0
        self._connections = connections
        self._multiplexer: Multiplexer = connections.current  # that has sent it
        self._idle_timeout = idle_timeout
        self._shown = shown
        self._replies: deque[Frames] = deque()
        self._consumed = Consumed()
        self._credit = Credit(limited=True)  # the server has this much, or less for a moment
        self._ended = False
        self._error: Exception | None = None
        self._taking = False  # whether a task waits in `__anext__`
        self._parked: trio.lowlevel.Task | None = None  # it, while it waits for a reply
        self._connecting = trio.CancelScope()  # in which a task waits for a connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(trio.ClosedResourceError("the block of this stream was left"))

    @trio.lowlevel.enable_ki_protection  # a request that is sent must have its correlation
    async def begin(self) -> None:
        """Send the request, as soon as there is a connection; errors as in `Client.stream`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._send():
            return
        with trio.move_on_at(self.deadline) as self._connecting:
            while not self._ended and not self._send():
                state = await self._multiplexer.wait_connected()
                if state is not None:
                    raise self._multiplexer.not_connected(self, state)
            return
        raise self._multiplexer.out_of_time(self)

    async def _begin_again(self) -> None:
        """Send the request again: the server that it was sent to has not started it."""
        try:
            await self.begin()
        except Exception as error:  # noqa: BLE001  # `__anext__` raises it
            self._end(error)

    def _send(self) -> bool:
        """Send the request on the current connection, if there is one."""
        self._multiplexer = self._connections.current
        self.correlation = self._multiplexer.send(self, wire.STREAM)
        return self.correlation > 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        """Take the next reply, as soon as it has come. It is a checkpoint if it has to wait.

        Raises:
            StopAsyncIteration: There is none any more.
            Exception: What has ended the stream, once.
            trio.BusyResourceError: Another task waits for a reply.
        """
        if not self._replies and not self._ended:
            if self._taking:
                raise trio.BusyResourceError("another task waits for a reply of this stream")
            try:
                self._taking = True
                while not self._replies and not self._ended:
                    await (self._wait() if self.correlation else self._begin_again())
            finally:
                self._taking = False
        if self._replies:
            reply = self._replies.popleft()
            credit = self._consumed.count(reply)
            if credit is not None and not self._ended:
                self._credit.add(credit)
                self._multiplexer.give_credit(self, credit)
            return self._shown(reply)
        error, self._error = self._error, None
        raise StopAsyncIteration if error is None else error

    @trio.lowlevel.enable_ki_protection  # the task that is woken must be waiting
    async def _wait(self) -> None:
        """Wait until something has come. When the time is up, the stream has ended."""
        idle_at = trio.current_time() + self._idle_timeout
        ends_at = min(self.deadline, idle_at)
        if ends_at == math.inf:  # a scope that never ends costs as much as a reply
            await self._park()
            return
        with trio.move_on_at(ends_at) as scope:
            await self._park()
        if scope.cancelled_caught:
            error = self._multiplexer.out_of_time(self)
            if idle_at < self.deadline:
                error = self._multiplexer.idle_too_long(self._idle_timeout)
                self.deadline = trio.current_time()  # so it counts as timed out
            self._end(error)

    async def _park(self) -> None:
        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _end(self, error: Exception) -> None:
        """End the stream here, and cancel it at the server, unless it has ended."""
        if self._ended:
            return
        if self.correlation:
            self._multiplexer.give_up(self)
        self._connecting.cancel()
        self.failed(error)

    def _wake(self) -> None:
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def more(self, body: Frames) -> None:
        """As in `PendingStream`."""
        if self._credit.spend(body):
            self._replies.append(body)
            self._wake()
        else:
            text = "the server has sent a reply of a stream without credit for it"
            self._end(UnexpectedReply(text, body))

    def ended(self) -> None:
        """As in `PendingStream`."""
        self._ended = True
        self._wake()

    def replied(self, body: Frames) -> None:
        """As in `PendingRequest`: the server makes no stream, and this is all."""
        self._replies.append(body)
        self.ended()

    def failed(self, error: Exception) -> None:
        """As in `PendingRequest`: raised after the replies that came before."""
        self._error = error
        self.ended()

    def not_started(self) -> None:
        """As in `PendingRequest`."""
        self.correlation = 0
        self._wake()
