"""Many requests of one task: `Client.request_many`.

One task sends all of them, and is woken once for all replies that arrive together. With a task for
each request, the wake-up of that task costs as much as the rest of the request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import trio

from .._errors import ConnectionLost, UnexpectedReply
from .._protocol import envelope as wire
from .._protocol.envelope import Frames
from .backoff import back_off
from .errors import only_frame
from .multiplexer import Multiplexer

Result = bytes | Exception


class _PipelinedRequest:
    """A `PendingRequest` of a pipeline."""

    __slots__ = ("_pipeline", "body", "correlation", "deadline", "place", "retried", "seconds")

    def __init__(
        self, pipeline: Pipeline, place: int, body: Frames, deadline: float, seconds: float
    ) -> None:
        self.place = place
        self.body = body
        self.deadline = deadline
        self.seconds = seconds
        self.correlation = 0
        self.retried = 0
        self._pipeline = pipeline

    def replied(self, body: Frames) -> None:
        """As in `PendingRequest`."""
        try:
            self._pipeline.end(self, only_frame(body))
        except UnexpectedReply as error:
            self._pipeline.end(self, error)

    def failed(self, error: Exception) -> None:
        """As in `PendingRequest`."""
        if not isinstance(error, ConnectionLost) or not self._pipeline.send_again(self):
            self._pipeline.end(self, error)


class Pipeline:
    """Takes requests one after the other, and keeps up to `in_flight` of them in flight.

    Args:
        multiplexer: Sends them.
        in_flight: Maximum requests in flight.
        timeout: Seconds for each from when it is taken, if the caller's own deadline is not
            earlier; None for no limit.
        retries: How often each is sent again after its connection was lost.
    """

    def __init__(
        self, multiplexer: Multiplexer, in_flight: int, timeout: float | None, retries: int
    ) -> None:
        self._multiplexer = multiplexer
        self._in_flight = in_flight
        self._timeout = math.inf if timeout is None else timeout
        self._retries = retries
        self._results: list[Result] = []
        self._deadline = -math.inf  # of the request that was taken last
        # Each of these is ordered by deadline, so the first one times out first.
        self._unsent: deque[_PipelinedRequest] = deque()
        self._sent: dict[_PipelinedRequest, None] = {}
        self._lost: list[_PipelinedRequest] = []  # their connection was lost; to be sent again
        self._parked: trio.lowlevel.Task | None = None

    async def run(self, bodies: Iterable[bytes]) -> list[Result]:
        """Send all of them; returns the result of each, in the order of the bodies."""
        await trio.lowlevel.checkpoint()
        left = iter(bodies)
        try:
            while self._fill(left):
                if self._lost:
                    await self._back_off()
                elif self._unsent:
                    await self._wait_for_connection()
                else:
                    await self._wait_for_reply()
            self._multiplexer.check_open()
        finally:
            for request in self._sent:
                self._multiplexer.give_up(request)
        return self._results

    def _fill(self, left: Iterator[bytes]) -> bool:
        """Take and send up to `in_flight` requests; returns whether any has not ended."""
        if not self._lost:  # otherwise those are sent first
            self._send()
            callers = trio.current_effective_deadline()
            for body in islice(left, self._in_flight - len(self._sent) - len(self._unsent)):
                frames = (body,) if type(body) is bytes else (wire.frame("each of bodies", body),)
                self._take(frames, callers)
                self._send()  # at once: the iterator may take long for the next body
        return bool(self._sent or self._unsent or self._lost)

    def _take(self, frames: Frames, callers: float) -> None:
        """Take a request. `callers` is the deadline of the caller's cancel scopes."""
        seconds = deadline = math.inf
        if callers != math.inf or self._timeout != math.inf:
            now = trio.current_time()
            # Never before the last one, which keeps the order. If the caller's deadline has moved
            # forward, its scope cancels all of them then.
            deadline = self._deadline = max(self._deadline, min(now + self._timeout, callers))
            seconds = deadline - now
        request = _PipelinedRequest(self, len(self._results), frames, deadline, seconds)
        self._unsent.append(request)
        self._results.append(b"")  # until it has ended

    @trio.lowlevel.enable_ki_protection  # each that is sent must be in `_sent`
    def _send(self) -> None:
        """Send the unsent requests, if there is a connection."""
        while self._unsent and (correlation := self._multiplexer.send(self._unsent[0])):
            request = self._unsent.popleft()
            request.correlation = correlation
            self._sent[request] = None

    @trio.lowlevel.enable_ki_protection  # the task that is woken must be waiting
    async def _wait_for_reply(self) -> None:
        """Wait until a reply has arrived, or the first request times out."""
        with trio.move_on_at(next(iter(self._sent)).deadline):
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._expire()

    async def _wait_for_connection(self) -> None:
        """Wait until there may be a connection, or connecting or the first request times out."""
        with trio.move_on_at(self._unsent[0].deadline):
            state = await self._multiplexer.wait_connected()
            if state is not None:
                while self._unsent:
                    request = self._unsent.popleft()
                    request.failed(self._multiplexer.not_connected(request, state))
        self._expire()

    async def _back_off(self) -> None:
        """Pause before the requests of the lost connection are sent again."""
        lost, self._lost = self._lost, []
        self._unsent.extend(lost)  # into an empty queue: all are lost at once
        with trio.move_on_at(self._unsent[0].deadline):
            await back_off(lost[0].retried - 1)
        self._expire()

    def _expire(self) -> None:
        """End the requests that have timed out."""
        now = trio.current_time()
        while self._unsent and self._unsent[0].deadline <= now:
            request = self._unsent.popleft()
            self.end(request, self._multiplexer.out_of_time(request))
        while self._sent and (request := next(iter(self._sent))).deadline <= now:
            self._multiplexer.give_up(request)
            self.end(request, self._multiplexer.out_of_time(request))

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        """Wake the task, once for all requests that end before it runs."""
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def end(self, request: _PipelinedRequest, result: Result) -> None:
        """A request has ended: store its result."""
        self._results[request.place] = result
        self._sent.pop(request, None)
        self._wake()

    def send_again(self, request: _PipelinedRequest) -> bool:
        """The connection of a request is lost; returns False if no retry is left."""
        if request.retried == self._retries:
            return False
        request.retried += 1
        self._sent.pop(request, None)
        self._lost.append(request)
        self._wake()
        return True
