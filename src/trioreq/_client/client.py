"""The client, as its callers see it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from .._checks import check_bodies, check_count, check_frames, check_seconds
from .._protocol import envelope as wire
from .._protocol.envelope import Frames
from .._statistics import ClientStatistics, Timings
from .connections import Connections
from .errors import only_frame
from .pipeline import Pipeline
from .single import SingleRequest
from .stream import Reply, Stream

_ONE_FRAME = partial(only_frame, instead="stream_multipart")


class Client:
    """A client of one server; `open_client` makes it. Any number of tasks may use it at once."""

    def __init__(self, connections: Connections, *, timeout: float | None, retries: int) -> None:
        self._connections = connections
        self._timeout = timeout
        self._retries = retries

    @property
    def timings(self) -> Timings | None:
        """How long the newest connection took to make, and when; None while there was none."""
        return self._connections.timings

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done; it may be called in any thread."""
        return self._connections.statistics()

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
        return await Pipeline(self._connections, in_flight, seconds, self._retries).run(bodies)

    @asynccontextmanager
    async def stream(
        self, body: bytes, *, timeout: float | None = None, idle_timeout: float | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request of one frame, and take any number of replies of one frame each.

        The value of the block is an async iterator of the replies. An error is raised by it after
        the replies that came before. Leaving the block cancels the request if it has not ended.

        The server sends at most 256 replies, or 64 KiB and one reply, more than were taken: then
        the handler waits. A stream is not sent again, whatever `retries` is, unless the server
        shuts down before it calls the handler. If the handler returns its reply, the stream has
        that one.

        Args:
            body: bytes, or an object with the buffer interface.
            timeout: Seconds for the whole stream; None for the client's own timeout. If the
                deadline of the cancel scopes around the call is earlier, that one is sent.
            idle_timeout: Seconds to wait for the next reply; None for no limit. The time in which
                the iterator is not asked for one does not count.

        Raises:
            NotConnected: There was no connection in time; nothing was sent.
            Refused: The server refuses this client; nothing was sent.
            ReplyError: By the iterator, as all that follow. The server answered with an error.
            RequestTimeout: The stream, or the next reply, took too long.
            ConnectionLost: The connection was lost.
            UnexpectedReply: A reply has several frames; `stream_multipart` takes those. Or the
                server has sent more than the stream has credit for.
            trio.BusyResourceError: Another task waits for a reply of this stream.
            trio.ClosedResourceError: The client is closed, or the block was left.

        Example:
            >>> async def print_all(client):
            ...     async with client.stream(b"1000000", timeout=60) as replies:
            ...         async for reply in replies:
            ...             print(reply)
        """
        frames = (body,) if type(body) is bytes else (wire.frame("body", body),)
        stream = self._stream(frames, timeout, idle_timeout, _ONE_FRAME)
        with stream:
            await stream.begin()
            yield stream

    @asynccontextmanager
    async def stream_multipart(
        self,
        frames: Sequence[bytes],
        *,
        timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        """Send a request of any number of frames, at least one, and take such replies.

        Arguments and errors are those of `stream`.
        """
        check_frames("frames", frames)
        stream = self._stream(wire.body("frames", list(frames)), timeout, idle_timeout, list)
        with stream:
            await stream.begin()
            yield stream

    def _stream(
        self,
        body: Frames,
        timeout: float | None,
        idle_timeout: float | None,
        shown: Callable[[Frames], Reply],
    ) -> Stream[Reply]:
        check_seconds("idle_timeout", idle_timeout)
        deadline = self._deadline(timeout)
        idle = math.inf if idle_timeout is None else idle_timeout
        return Stream(self._connections, body, deadline, idle, shown)

    def _seconds(self, timeout: float | None) -> float | None:
        """A request's own timeout, or the client's."""
        check_seconds("timeout", timeout)
        return self._timeout if timeout is None else timeout

    def _deadline(self, timeout: float | None) -> float:
        """When a request that is sent now ends: also by the cancel scopes around the call."""
        seconds = self._seconds(timeout)
        deadline = trio.current_effective_deadline()
        if seconds is not None:
            deadline = min(deadline, trio.current_time() + seconds)
        return deadline

    def _reply(self, body: Frames, timeout: float | None) -> Coroutine[object, Any, Frames]:
        """Send a request; awaited, it returns the body of the reply."""
        deadline = self._deadline(timeout)
        if deadline == math.inf:  # a cancel scope costs a fifth of a request
            return self._attempts(SingleRequest(self._connections, body, math.inf, math.inf))
        return self._reply_by(deadline, body)

    def _attempts(self, request: SingleRequest) -> Coroutine[object, Any, Frames]:
        return request.attempts(self._retries) if self._retries else request.attempt()

    async def _reply_by(self, deadline: float, body: Frames) -> Frames:
        seconds = deadline - trio.current_time()
        request = SingleRequest(self._connections, body, deadline, seconds)
        # Also if the deadline is the caller's, which may be moved back meanwhile: the server
        # cancels the request at the deadline that was sent, and then sends nothing.
        with trio.move_on_at(deadline):
            return await self._attempts(request)
        raise self._connections.current.out_of_time(request)
