"""The client, as its callers see it."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import trio

from .._checks import check_bodies, check_count, check_frames, check_seconds
from .._protocol import envelope as wire
from .._protocol.envelope import Frames
from .._statistics import ClientStatistics, Timings
from .errors import only_frame
from .multiplexer import Multiplexer
from .pipeline import Pipeline
from .single import SingleRequest


class Client:
    """A client of one server; `open_client` makes it. Any number of tasks may use it at once."""

    def __init__(self, multiplexer: Multiplexer, *, timeout: float | None, retries: int) -> None:
        self._multiplexer = multiplexer
        self._timeout = timeout
        self._retries = retries

    @property
    def timings(self) -> Timings | None:
        """How long the newest connection took to make, and when; None while there was none."""
        return self._multiplexer.timings

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done; it may be called in any thread."""
        return self._multiplexer.statistics()

    async def request(self, body: bytes, *, timeout: float | None = None) -> bytes:
        """Send a request of one frame, and wait for its reply of one frame.

        Args:
            body: bytes, or an object with the buffer interface.
            timeout: Seconds to wait for the reply; None for the client's own timeout. If the
                deadline of the cancel scopes around the call is earlier, that one is sent.

        Raises:
            ReplyError: The server answered with an error.
            RequestTimeout: There was no reply in time.
            NotConnected: There was no connection in time; nothing was sent. The message says what
                to check.
            Refused: The server refuses this client; nothing was sent.
            ConnectionLost: The connection was lost, and there are no retries left.
            UnexpectedReply: The reply has several frames; use `request_multipart`.
            trio.ClosedResourceError: The client is closed.
        """
        frames = (body,) if type(body) is bytes else (wire.frame("body", body),)
        return only_frame(await self._reply(frames, timeout))

    async def request_multipart(
        self, frames: Sequence[bytes], *, timeout: float | None = None
    ) -> list[bytes]:
        """Send a request of any number of frames, at least one, and wait for its reply.

        Arguments and errors are those of `request`.
        """
        check_frames("frames", frames)
        return list(await self._reply(wire.body("frames", list(frames)), timeout))

    async def request_many(
        self, bodies: Iterable[bytes], *, in_flight: int = 256, timeout: float | None = None
    ) -> list[bytes | Exception]:
        """Send many requests of one frame each, and wait for all of their replies.

        It works like `in_flight` tasks that take one body after the other and call `request`, with
        fewer wake-ups. Each request ends on its own: the result of one that fails is the exception
        that `request` would have raised.

        Args:
            bodies: The bodies: bytes, or objects with the buffer interface. The iterable must be
                finite; a body is taken when fewer than `in_flight` requests are in flight.
            in_flight: Maximum requests in flight. A server refuses those that it neither runs
                nor queues (1000 of a client, by default) as ``overloaded``.
            timeout: Seconds to wait for each reply; None for the client's own timeout. The deadline
                of the cancel scopes around the call holds too, as in `request`.

        Returns:
            For each body, in their order, the reply's only frame, or an error.

        Raises:
            TypeError: A body is not bytes; the requests in flight are cancelled.
            ValueError: An option is out of its range.
            trio.ClosedResourceError: The client is closed.
        """
        check_bodies("bodies", bodies)
        check_count("in_flight", in_flight, 1)
        seconds = self._seconds(timeout)
        return await Pipeline(self._multiplexer, in_flight, seconds, self._retries).run(bodies)

    def _seconds(self, timeout: float | None) -> float | None:
        """A request's own timeout, or the client's."""
        check_seconds("timeout", timeout)
        return self._timeout if timeout is None else timeout

    def _reply(self, body: Frames, timeout: float | None) -> Coroutine[object, Any, Frames]:
        """Send a request; awaited, it returns the body of the reply."""
        seconds = self._seconds(timeout)
        deadline = trio.current_effective_deadline()
        if seconds is not None:
            deadline = min(deadline, trio.current_time() + seconds)
        if deadline == math.inf:  # a cancel scope costs a fifth of a request
            return self._attempts(SingleRequest(self._multiplexer, body, math.inf, math.inf))
        return self._reply_by(deadline, body)

    def _attempts(self, request: SingleRequest) -> Coroutine[object, Any, Frames]:
        return request.attempts(self._retries) if self._retries else request.attempt()

    async def _reply_by(self, deadline: float, body: Frames) -> Frames:
        seconds = deadline - trio.current_time()
        request = SingleRequest(self._multiplexer, body, deadline, seconds)
        # Also if the deadline is the caller's, which may be moved back meanwhile: the server
        # cancels the request at the deadline that was sent, and then sends nothing.
        with trio.move_on_at(deadline):
            return await self._attempts(request)
        raise self._multiplexer.out_of_time(request)
