"""The client: what its callers call, on top of `Exchange`."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import outcome
import trio

from .._errors import ConnectionLost
from .._options import check_count, check_seconds
from .._protocol import envelope as wire
from .._protocol.envelope import Frames
from .._statistics import ClientStatistics, Timings
from .multiplexer import Exchange, back_off, only_frame
from .pipeline import Many


class _Call:
    """A request that a task of its own waits for, through all tries."""

    __slots__ = ("body", "correlation", "deadline", "exchange", "task")

    def __init__(self, exchange: Exchange, body: Frames, deadline: float) -> None:
        self.exchange = exchange
        self.body = body
        self.deadline = deadline
        self.correlation = 0
        self.task = trio.lowlevel.current_task()

    def replied(self, body: Frames) -> None:
        """As in `Inquiry`."""
        trio.lowlevel.reschedule(self.task, outcome.Value(body))

    def failed(self, error: Exception) -> None:
        """As in `Inquiry`."""
        trio.lowlevel.reschedule(self.task, outcome.Error(error))

    def abort(self, _: object) -> trio.lowlevel.Abort:
        """It is cancelled, out of time, or Ctrl-C."""
        self.exchange.give_up(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Client:
    """A client of one server; `open_client` makes it. Any number of tasks may use it at once."""

    def __init__(self, exchange: Exchange, *, timeout: float | None, retries: int) -> None:
        self._exchange = exchange
        self._timeout = timeout
        self._retries = retries

    @property
    def timings(self) -> Timings | None:
        """How long the newest connection took to make, and when; None while there was none."""
        return self._exchange.timings

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done."""
        return self._exchange.statistics()

    async def request(self, body: bytes, *, timeout: float | None = None) -> bytes:
        """Send a request of one frame, and wait for its reply of one frame.

        Args:
            body: bytes, or an object with the buffer interface.
            timeout: Seconds until it is given up; None for the client's own.

        Raises:
            ReplyError: The server answered with an error.
            RequestTimeout: The time was up.
            NotConnected: There was no connection in time; nothing was sent.
            Refused: The server does not let this client in; nothing was sent.
            ConnectionLost: The connection broke, and there are no retries left.
            UnexpectedReply: The reply has several frames; `request_multipart` takes those.
            trio.ClosedResourceError: The client is closed.
        """
        frames = (body,) if type(body) is bytes else wire.body("the request is", [body])
        return only_frame(await self._reply(frames, timeout))

    async def request_multipart(
        self, frames: Sequence[bytes], *, timeout: float | None = None
    ) -> list[bytes]:
        """Send a request of any number of frames, at least one, and wait for its reply.

        Arguments and errors are those of `request`.
        """
        if isinstance(frames, bytes | bytearray | memoryview | str):
            raise TypeError("frames is a sequence of bytes; for one frame use request")
        return list(await self._reply(wire.body("the request is", list(frames)), timeout))

    async def request_many(
        self, bodies: Iterable[bytes], *, in_flight: int = 256, timeout: float | None = None
    ) -> list[bytes | Exception]:
        """Send many requests of one frame each, and wait for all of their replies.

        It does what `in_flight` tasks would do that take one body after the other and call
        `request`, with fewer wake-ups. Each request ends on its own: in the place of a reply
        that does not come stands the error that `request` would have raised.

        Args:
            bodies: What to send: bytes, or objects with the buffer interface. It has an end; each
                is taken when there is room for it.
            in_flight: How many may wait for a reply at once. What a server neither runs nor queues
                (1000 of a client, unless it is told otherwise) is ``overloaded``.
            timeout: Seconds until a request is given up; None for the client's own.

        Returns:
            For each body, in their order, the reply's only frame, or an error.

        Raises:
            TypeError: A body is no bytes; what is in flight is taken back.
            ValueError: An option is out of its range.
            trio.ClosedResourceError: The client is closed.
        """
        if isinstance(bodies, bytes | bytearray | memoryview | str):
            raise TypeError("bodies is an iterable of bytes; for one use request")
        check_count("in_flight", in_flight, 1)
        many = Many(self._exchange, in_flight, self._seconds(timeout), self._retries)
        return await many.results(bodies)

    def _reply(self, body: Frames, timeout: float | None) -> Coroutine[object, Any, Frames]:
        """What is to be awaited for the body of the reply."""
        seconds = self._seconds(timeout)
        if seconds is None:  # a scope that never ends it costs a fifth of a request
            call = _Call(self._exchange, body, math.inf)
            return self._try(call) if self._retries else self._ask(call)
        return self._in_time(body, seconds)

    def _seconds(self, timeout: float | None) -> float | None:
        """What a request's own timeout makes of the client's."""
        check_seconds("timeout", timeout)
        return self._timeout if timeout is None else timeout

    async def _in_time(self, body: Frames, seconds: float) -> Frames:
        """Ask, and wait no longer than this."""
        deadline = trio.current_time() + seconds
        call = _Call(self._exchange, body, deadline)
        with trio.move_on_at(deadline):
            return await (self._try(call) if self._retries else self._ask(call))
        raise self._exchange.out_of_time(call, seconds)

    async def _try(self, call: _Call) -> Frames:
        """Ask until there is an answer, or no retry is left."""
        for retry in range(self._retries + 1):
            try:
                return await self._ask(call)
            except ConnectionLost:
                if retry == self._retries:
                    raise
                await back_off(retry)
        raise AssertionError("unreachable")

    @trio.lowlevel.enable_ki_protection  # who is to be woken must wait
    async def _ask(self, call: _Call) -> Frames:
        """Send, as soon as there is a connection, and wait for the reply."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._exchange.begin(call):
            if not await self._exchange.wait_connected():
                raise self._exchange.unconnected(call)
        reply: Frames = await trio.lowlevel.wait_task_rescheduled(call.abort)
        return reply
