"""Many requests of one task: `Client.request_many`.

The task sends them, and is woken once for all replies that came together. Where each request has a
task, to wake it costs as much as all the rest.
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
from .multiplexer import Exchange, back_off, only_frame

Result = bytes | Exception


class _One:
    """One of them, through all tries."""

    __slots__ = ("body", "correlation", "deadline", "many", "place", "retried")

    def __init__(self, many: Many, place: int, body: Frames, deadline: float) -> None:
        self.many = many
        self.place = place
        self.body = body
        self.deadline = deadline
        self.correlation = 0
        self.retried = 0

    def replied(self, body: Frames) -> None:
        """As in `Inquiry`."""
        try:
            self.many.end(self, only_frame(body))
        except UnexpectedReply as error:
            self.many.end(self, error)

    def failed(self, error: Exception) -> None:
        """As in `Inquiry`."""
        if not isinstance(error, ConnectionLost) or not self.many.send_again(self):
            self.many.end(self, error)


class Many:
    """Requests that are taken one after the other, so many that some are always in flight.

    Args:
        exchange: What carries them.
        in_flight: How many may be, at the most.
        timeout: Seconds that each has from when it is taken; None for no limit.
        retries: How often each is sent again after the connection broke under it.
    """

    def __init__(
        self, exchange: Exchange, in_flight: int, timeout: float | None, retries: int
    ) -> None:
        self._exchange = exchange
        self._in_flight = in_flight
        self._timeout = math.inf if timeout is None else timeout
        self._retries = retries
        self._results: list[Result] = []
        # In each of these the one whose time is up first is the first.
        self._unsent: deque[_One] = deque()
        self._sent: dict[_One, None] = {}
        self._lost: list[_One] = []  # with their connection; to be sent again
        self._parked: trio.lowlevel.Task | None = None

    async def results(self, bodies: Iterable[bytes]) -> list[Result]:
        """What has become of each."""
        await trio.lowlevel.checkpoint()
        left = iter(bodies)
        try:
            while self._take(left):
                if self._lost:
                    await self._pause()
                elif self._unsent:
                    await self._wait_for_connection()
                else:
                    await self._wait_for_reply()
            self._exchange.check_open()
        finally:
            for one in self._sent:
                self._exchange.give_up(one)
        return self._results

    def _take(self, left: Iterator[bytes]) -> bool:
        """Take and send as many as may be in flight; returns whether any has not ended."""
        if not self._lost:  # else those are first
            self._send()
            timed = self._timeout != math.inf
            for body in islice(left, self._in_flight - len(self._sent) - len(self._unsent)):
                frames = (body,) if type(body) is bytes else wire.body("the request is", [body])
                deadline = trio.current_time() + self._timeout if timed else math.inf
                self._unsent.append(_One(self, len(self._results), frames, deadline))
                self._results.append(b"")  # until it is there
                self._send()  # at once: who makes the bodies may take his time
        return bool(self._sent or self._unsent or self._lost)

    @trio.lowlevel.enable_ki_protection  # what is begun is to be given up
    def _send(self) -> None:
        """Send what is not sent, if there is a connection."""
        while self._unsent and self._exchange.begin(self._unsent[0]):
            self._sent[self._unsent.popleft()] = None

    @trio.lowlevel.enable_ki_protection  # who is parked must not run
    async def _wait_for_reply(self) -> None:
        """Wait until a reply has come, or the time of the first is up."""
        with trio.move_on_at(next(iter(self._sent)).deadline):
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._expire()

    async def _wait_for_connection(self) -> None:
        """Wait until there may be a connection, or the time for that, or of the first, is up."""
        with trio.move_on_at(self._unsent[0].deadline):
            if not await self._exchange.wait_connected():
                while self._unsent:
                    one = self._unsent.popleft()
                    one.failed(self._exchange.unconnected(one))
        self._expire()

    async def _pause(self) -> None:
        """Wait for a while, and send what was lost again, before the others."""
        lost, self._lost = self._lost, []
        self._unsent.extendleft(reversed(lost))
        with trio.move_on_at(self._unsent[0].deadline):
            await back_off(lost[0].retried - 1)
        self._expire()

    def _expire(self) -> None:
        """End those whose time is up."""
        if self._timeout == math.inf:
            return
        now = trio.current_time()
        while self._unsent and self._unsent[0].deadline <= now:
            one = self._unsent.popleft()
            self.end(one, self._exchange.out_of_time(one, self._timeout))
        while self._sent and (one := next(iter(self._sent))).deadline <= now:
            self._exchange.give_up(one)
            self.end(one, self._exchange.out_of_time(one, self._timeout))

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        """There is something, and there may be more in a moment: it is for one wake-up."""
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def end(self, one: _One, result: Result) -> None:
        """This has become of it."""
        self._results[one.place] = result
        self._sent.pop(one, None)
        self._wake()

    def send_again(self, one: _One) -> bool:
        """Its connection is lost; returns False if no retry is left."""
        if one.retried == self._retries:
            return False
        one.retried += 1
        self._sent.pop(one, None)
        self._lost.append(one)
        self._wake()
        return True
